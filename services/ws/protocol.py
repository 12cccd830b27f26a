"""One port for both: `GET /ws/v1` goes to picows, everything else is HTTP for FastAPI."""

import asyncio
import logging
from typing import Any, Final

from picows.picows import WSProtocol  # type: ignore[attr-defined]

from services.common.http_protocol import BoundedProtocol

PATH: Final = b"/ws/v1"
_LINE: Final = b"GET " + PATH
HANDSHAKE_SECONDS: Final = 10.0

_quiet = logging.getLogger("services.ws.picows")
_quiet.setLevel(logging.CRITICAL)
"""It would write a line for every connection and every broken frame."""


class WsOrHttp(BoundedProtocol):
    """Decides by the first bytes of each request: clients also upgrade a connection that they kept."""

    _begin = b""

    def data_received(self, data: bytes) -> None:
        if not self._begin and not self._between_requests():
            super().data_received(data)
            return
        self._begin += data
        if self._begin.startswith(_LINE):
            self._hand_over(self._begin)
        elif not _LINE.startswith(self._begin):
            begin, self._begin = self._begin, b""
            super().data_received(begin)

    def _between_requests(self) -> bool:
        idle = self.cycle is None or self.cycle.response_complete
        return idle and self._in_head and not self._head_bytes

    def _hand_over(self, begin: bytes) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        gateway = self.config.app.state.ws  # type: ignore[union-attr]
        protocol = websocket_protocol(gateway.accept, gateway.max_read)
        transport: Any = self.transport
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        feed(protocol, begin)


def websocket_protocol(accept: Any, max_read: int) -> Any:
    """picows's protocol, as its `ws_create_server` makes it; pings are ours."""
    return WSProtocol(
        None, None, False, accept, _quiet, True, HANDSHAKE_SECONDS, False, 20.0, 20.0, 1, True, max_read, None,
        4_096,
    )  # fmt: skip


def feed(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Give bytes that were read already to a protocol that wants to read for itself."""
    view = memoryview(data)
    while view:
        buffer = memoryview(protocol.get_buffer(len(view))).cast("B")
        size = min(len(buffer), len(view))
        buffer[:size] = view[:size]
        protocol.buffer_updated(size)
        view = view[size:]
