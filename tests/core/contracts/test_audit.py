"""The audit contract: strict, and no room for a person in it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.contracts.audit import parse
from core.contracts.usage import ContractError

GOOD: dict[str, Any] = {
    "schema": "headrace.audit.v1",
    "id": "aud_01890a5d-ac96-774b-bcce-b302099a8057",
    "time": "2026-02-18T12:00:00.000Z",
    "tenant": "org_01890a5d-ac96-774b-bcce-b302099a8057",
    "actor": "usr_01890a5d-ac96-774b-bcce-b302099a8057",
    "action": "api_key.create",
    "target": "key_01890a5d-ac96-774b-bcce-b302099a8057",
    "outcome": "success",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "detail": {"scopes": "usage:write,usage:read", "count": "2"},
}


def test_round_trip() -> None:
    event = parse(json.dumps(GOOD).encode())
    assert parse(event.encode()) == event
    assert event.key == GOOD["tenant"].encode()
    assert event.detail == GOOD["detail"]


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "jo@example.com"},
        {"actor": "Jo Doe"},
        {"target": ""},
        {"detail": {"email": "jo@example.com"}},
        {"detail": {"note": "said “hello”"}},
        {"detail": {"n": 1}},
        {"detail": {f"k{n}": "" for n in range(17)}},
        {"tenant": ""},
        {"tenant": "acme"},
        {"outcome": "maybe"},
        {"outcome": "may' - at `$` be"},
        {"schema": "headrace.audit.v2"},
        {"time": "2026-02-18T12:00:00"},
        {"time": "1999-12-31T23:59:59Z"},
        {"trace_id": "xyz"},
        {"action": "delete"},
        {"sealed": "not base64url!"},
        {"surprise": "x"},
        {"target": "key_1\n"},
    ],
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as refused:
        parse(json.dumps(GOOD | change).encode())
    assert refused.value.code in {"schema", "time"}
    for value in change.values():
        if isinstance(value, str) and len(value) > 4:
            assert value not in refused.value.message


@pytest.mark.parametrize("field", sorted(GOOD.keys() - {"trace_id", "detail"}))
def test_missing_fields_are_refused(field: str) -> None:
    with pytest.raises(ContractError, match=field):
        parse(json.dumps({name: value for name, value in GOOD.items() if name != field}).encode())


@given(st.binary(max_size=200))
def test_noise_is_refused_with_a_code(noise: bytes) -> None:
    with pytest.raises(ContractError) as refused:
        parse(noise)
    assert refused.value.code in {"unreadable", "schema"}


def test_depth_is_refused() -> None:
    with pytest.raises(ContractError):
        parse(b'{"detail":' * 100_000)
