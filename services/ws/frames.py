"""Frames as bytes: built once, then written to every socket that wants them.

Messages of the server are JSON texts in one unmasked WebSocket frame each (RFC 6455, section 5.2).
"""

from typing import Any, Final

import orjson

SUBPROTOCOL: Final = "agent.v1"

# RFC 6455 and the platform's own codes of a close.
NORMAL, PROTOCOL, UNSUPPORTED, RESTART = 1000, 1002, 1003, 1012
AUTH, SCOPE, SLOW, TOO_BIG, RATE = 4001, 4003, 4008, 4013, 4029
_NO_REPLY: Final = frozenset({1005, 1006})
_LONGEST_REASON: Final = 123


def text_frame(payload: bytes) -> bytes:
    """One final text frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def message(kind: str, **fields: Any) -> bytes:
    """A frame of the server: `{"t": kind, …}`."""
    return text_frame(orjson.dumps({"t": kind, **fields}))


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; a reason above 123 bytes is cut."""
    payload = b"" if code in _NO_REPLY else code.to_bytes(2) + reason.encode()[:_LONGEST_REASON]
    return bytes((0x88, len(payload))) + payload


def event_prefix(channel: str) -> bytes:
    """What begins every event frame of a channel."""
    return b'{"t":"event","ch":%b,"epoch":' % orjson.dumps(channel)


def event_frame(prefix: bytes, epoch: int, seq: int, raw: bytes) -> bytes:
    """An event of a run or a conversation; `raw` is the event as it stands in the log."""
    return text_frame(b'%b%d,"seq":%d,"event":%b}' % (prefix, epoch, seq, raw))


def user_event_frame(prefix: bytes, epoch: int, cursor: str, raw: bytes) -> bytes:
    """An event of a user's channel, whose place is a cursor instead of a number."""
    return text_frame(b'%b%d,"cursor":"%b","event":%b}' % (prefix, epoch, cursor.encode(), raw))


PING: Final = message("ping") + b"\x89\x00"
"""Ours, which pages can see, and WebSocket's own, which every library answers by itself."""
PONG: Final = message("pong")
