"""The header by which the web pages tell whose browser they ask for."""

import pytest

from services.common.browser_address import VALID_SECONDS, sign, verified

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8::7"])
def test_what_the_pages_signed_is_believed_for_a_minute(address: str) -> None:
    header = sign(address, KEY, now=1000)
    assert verified(header, KEY, now=1000 + VALID_SECONDS) == address
    assert verified(header, KEY, now=1001 + VALID_SECONDS) is None


def test_nobody_else_can_make_one() -> None:
    genuine = sign("198.51.100.7", KEY, now=1000)
    expires, signature, address = genuine.split(".", 2)
    forged = [
        sign("198.51.100.7", OTHER, now=1000), f"{expires}.{signature}.198.51.100.8", f"9{expires}.{signature}.{address}",
        f"{expires}.{signature}", f"{expires}..{address}", address, "", ".", "..", "é.é.é", f"{expires}.{signature.upper()}.{address}",
        f"-1.{signature}.{address}", f"{'9' * 5000}.{signature}.{address}", sign("not an address", KEY, now=1000),
        sign("198.51.100.7, 203.0.113.9", KEY, now=1000), "²" + genuine,
    ]  # fmt: skip
    assert [header for header in forged if verified(header, KEY, now=1000) is not None] == []
