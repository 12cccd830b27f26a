"""The address of a browser behind the web pages, told to the gateway in a way that only the pages can.

To the gateway everybody at the pages comes from one address, theirs. They send
`x-headrace-browser: <expiry>.<HMAC-SHA256 in hex>.<address>` with what they ask for a browser, signed under
a key that nobody but the two holds (`HEADRACE_PAGES_KEY`); the gateway then counts and passes on that
address instead of the connection's. A header that is not signed, or has expired, changes nothing.
"""

import hashlib
import hmac
import time
from ipaddress import ip_address
from typing import Final

HEADER: Final = "x-headrace-browser"
VALID_SECONDS: Final = 60
_LONGEST: Final = 160


def sign(address: str, key: bytes, *, now: float | None = None) -> str:
    """Value of the header, valid `VALID_SECONDS` from now."""
    expires = int(time.time() if now is None else now) + VALID_SECONDS
    return f"{expires}.{_mac(expires, address, key)}.{address}"


def verified(header: str, key: bytes, *, now: float | None = None) -> str | None:
    """The address; None for a value that the pages did not make within the last minute."""
    expires, _, rest = header.partition(".")
    signature, _, address = rest.partition(".")
    if len(header) > _LONGEST or not (expires.isascii() and expires.isdecimal()):
        return None
    if not hmac.compare_digest(_mac(int(expires), address, key).encode(), signature.encode()):
        return None
    if int(expires) < (time.time() if now is None else now):
        return None
    try:
        return str(ip_address(address))
    except ValueError:
        return None


def _mac(expires: int, address: str, key: bytes) -> str:
    text = f"headrace browser v1\n{expires}\n{address}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
