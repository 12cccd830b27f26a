"""The contract of `usage.records`: one reader for what the API takes and for what lands."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.contracts.usage import (
    MAX_AGE,
    MAX_AHEAD,
    ContractError,
    UsageEvent,
    convert,
    out_of_limits,
    parse,
)

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "type": "headrace.usage.v1",
    "id": "one",
    "source": "agents/eu-1",
    "time": "2026-02-18T12:00:00.000Z",
    "tenant": "org_1",
    "data": {"meter": "llm.tokens.input", "quantity": "12.5"},
}
MARKER = "what-the-sender-wrote"

READERS: list[Callable[[Any], UsageEvent]] = [lambda value: parse(json.dumps(value).encode()), convert]


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with another value at a path such as `data.quantity`."""
    made: dict[str, Any] = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    inner = made
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return made


@pytest.mark.parametrize("read", READERS, ids=["record", "element of a batch"])
@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("type", MARKER, "schema"),
        ("type", f"{MARKER}' - at `$.x`", "schema"),
        ("specversion", MARKER, "schema"),
        ("datacontenttype", MARKER, "schema"),
        (MARKER, 1, "schema"),
        (f"data.{MARKER}", 1, "schema"),
        ("time", MARKER, "schema"),
        ("time", "2026-02-18T12:00:00", "schema"),
        ("time", "0001-01-01T00:00:00+14:00", "time"),
        ("time", "9999-12-31T23:59:59-14:00", "time"),
        ("id", [MARKER], "schema"),
        ("id", MARKER * 20, "schema"),
        ("source", "", "schema"),
        ("tenant", MARKER * 10, "schema"),
        ("subject", MARKER * 20, "schema"),
        ("subject", "a\x00b", "schema"),
        ("importid", "a\x00b", "schema"),
        ("importid", MARKER * 5, "schema"),
        ("data", None, "schema"),
        ("data.meter", MARKER, "unknown_meter"),
        ("data.quantity", MARKER, "quantity"),
        ("data.quantity", "+1", "quantity"),
        ("data.quantity", "01", "quantity"),
        ("data.quantity", "1.", "quantity"),
        ("data.quantity", ".5", "quantity"),
        ("data.quantity", "1\n", "quantity"),
        ("data.dimensions", {MARKER: "x"}, "dimension"),
        ("data.dimensions", {"model": MARKER * 20}, "schema"),
        ("data.dimensions", {MARKER * 10: "x"}, "schema"),
        ("data.dimensions", {str(n): "x" for n in range(17)}, "schema"),
    ],
)
def test_what_cannot_be_counted_has_a_code_and_no_content_in_its_message(
    read: Callable[[Any], UsageEvent], path: str, value: object, code: str
) -> None:
    with pytest.raises(ContractError) as caught:
        read(changed(path, value))
    assert caught.value.code == code
    assert caught.value.message
    assert MARKER not in caught.value.message


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b'{"id": "\xed\xa0\x80"}', b'{"id": "a" "b"}'])
def test_bytes_that_are_no_object_are_unreadable(value: bytes) -> None:
    with pytest.raises(ContractError) as caught:
        parse(value)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("value", [b"[" * 100_000, b"[]", b"1", b"null", b"{}"])
def test_json_that_is_no_event_is_against_the_schema(value: bytes) -> None:
    with pytest.raises(ContractError) as caught:
        parse(value)
    assert caught.value.code == "schema"


@pytest.mark.parametrize("quantity", ["0", "0.000000001", "999999999999999999.999999999", "1.50"])
def test_quantities_within_the_precision_of_the_lake_are_taken(quantity: str) -> None:
    assert parse(json.dumps(changed("data.quantity", quantity)).encode()).data.quantity == quantity


offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(2000, 1, 2), datetime(2199, 12, 30), timezones=offsets),  # noqa: DTZ001
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=64),
)
def test_what_is_encoded_reads_back_as_the_same_event(time: datetime, subject: str) -> None:
    made = changed("subject", subject)
    made["time"] = time.isoformat()
    event = convert(made)
    again = parse(event.encode())
    assert again == event
    assert (again.identity, again.key) == (event.identity, event.key)
    assert again.time == time


@pytest.mark.parametrize(
    ("offset", "out"),
    [
        (MAX_AHEAD, False),
        (MAX_AHEAD + timedelta(microseconds=1), True),
        (-MAX_AGE, False),
        (-MAX_AGE - timedelta(microseconds=1), True),
    ],
)
def test_limits_of_time_include_their_edges_and_do_not_hold_for_imports(offset: timedelta, out: bool) -> None:
    received = datetime(2026, 2, 18, 12, tzinfo=UTC)
    made = changed("time", (received + offset).isoformat())
    assert out_of_limits(convert(made), received) is out
    assert out_of_limits(convert({**made, "importid": "imp_1"}), received) is False
