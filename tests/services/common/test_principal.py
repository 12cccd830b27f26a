"""The header that carries the caller between services."""

import base64

import pytest

from services.common.principal import VALID_SECONDS, Principal, PrincipalError, sign, system, verify

KEY = b"k" * 32
CALLER = Principal(
    tenant_id="org_1", subject="key_1", kind="api_key", scopes=frozenset({"usage:read", "org:read"}), plan="team",
    requests_per_minute=600, key_id="key_1",
)  # fmt: skip


def test_what_was_signed_is_read() -> None:
    assert verify(sign(CALLER, KEY), KEY) == CALLER
    assert verify(sign(system("users"), KEY), KEY).kind == "system"


def test_it_holds_for_a_minute() -> None:
    header = sign(CALLER, KEY, now=1000)
    assert verify(header, KEY, now=1000 + VALID_SECONDS) == CALLER
    with pytest.raises(PrincipalError, match="expired"):
        verify(header, KEY, now=1001 + VALID_SECONDS)


def test_only_the_holder_of_the_key_can_make_one() -> None:
    payload, _, signature = sign(CALLER, KEY).partition(".")
    owner = base64.urlsafe_b64encode(
        base64.urlsafe_b64decode(payload + "==").replace(b"org_1", b"org_2")
    ).decode()
    forged = [
        sign(CALLER, b"other"), f"{owner}.{signature}", payload, f"{payload}.", f".{signature}", "", ".", "é.é",
        f"{payload}.{signature[:-1]}", f"{payload}.{signature}0", f"{payload}.{signature.upper()}",
    ]  # fmt: skip
    for header in forged:
        with pytest.raises(PrincipalError):
            verify(header, KEY)


def test_scopes_decide_and_the_platform_may_all() -> None:
    assert CALLER.may("usage:read")
    assert not CALLER.may("usage:write")
    assert system("relay").may("anything")
