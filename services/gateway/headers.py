"""Which headers pass the gateway: all but those of one hop and those by which somebody could lie."""

import re
from typing import Final

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NOT_PASSED_ON: Final = HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"authorization", b"x-request-id", b"traceparent", b"forwarded", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip",
}  # fmt: skip
_NOT_PASSED_BACK: Final = HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"traceparent"}
_INTERNAL: Final = b"x-headrace-"
_UNSENDABLE: Final = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")


def request_headers(given: Headers) -> Headers:
    """The caller's headers for a service; framing and ours are added by whoever sends them."""
    dropped = _named_by_connection(given)
    return [
        pair
        for pair in given
        if pair[0] not in _NOT_PASSED_ON and pair[0] not in dropped and not pair[0].startswith(_INTERNAL)
    ]


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Headers that the `Connection` header declares to be for this hop only."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in {b"keep-alive", b"close"}:
            break
    else:
        return frozenset()
    values = b",".join(value for name, value in headers if name == b"connection")
    return frozenset(token.strip() for token in values.lower().split(b",")) - {b"content-length"}


def response_headers(given: Headers) -> Headers:
    """What goes back of a service's headers (names in lower case)."""
    dropped = _named_by_connection(given)
    return [
        (name, value)
        for name, value in given
        if name not in _NOT_PASSED_BACK
        and name not in dropped
        and not name.startswith(_INTERNAL)
        and not _UNSENDABLE.search(value)
    ]
