"""uvicorn's HTTP protocol with the bounds it lacks: size of a request's head, time to send it, and how
much of a body is read after the answer was given.

Without them one connection can fill the memory with header lines, and half-sent requests hold
descriptors for ever. What is read of a body before the answer is up to whoever reads it.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from services.common.errors import MEDIA_TYPE, Problem

MAX_HEAD_BYTES: Final = 32_768
HEAD_SECONDS: Final = 15.0
MAX_LEFTOVER_BYTES: Final = 64 << 20
LEFTOVER_SECONDS: Final = 10.0
"""An answer such as 413 comes before the body's end. The rest is read and dropped within these
limits, because closing at once would reset the connection and take the answer with it."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _complete = 0
    _in_head = True
    _in_body = False
    _leftover = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._arm(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        complete = self._complete
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        # A packet that ended a request may hold the start of the next, which the next packet continues.
        self._head_bytes += len(data) if complete == self._complete else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(Problem(431, "head_too_large", "Request header fields too large"))
        elif self._timer is None and self._head_bytes:
            self._arm(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._head_bytes, self._leftover = False, True, 0, 0
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._leftover += len(body)
            if self._leftover > MAX_LEFTOVER_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._in_body = True, False
        self._complete += 1
        self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._arm(LEFTOVER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, as a problem document."""
        self._refuse(Problem(400, "malformed_request", "Malformed request", msg))

    def _refuse(self, problem: Problem) -> None:
        body = problem.body()
        head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[problem.status] + head % (MEDIA_TYPE.encode(), len(body)) + body)
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
