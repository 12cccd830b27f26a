"""One connection to a service: what is written goes out, answers come back piece by piece.

A small client of its own, because the library clients take several times the CPU of all else the
gateway does (docs/adr/0007). It does HTTP/1.1 as far as our own services speak it: one request at a
time, framing by length, chunks or the end of the connection, and nothing that was not asked for.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

if TYPE_CHECKING:
    from services.gateway.client import Client

HIGH_WATER: Final = 256 * 1024
"""Bytes of an answer that may wait for a slow caller; above it the service is not read."""
MAX_HEAD_BYTES: Final = 64 * 1024


class UpstreamError(Exception):
    """The service closed the connection, or what it said is no HTTP."""


class SilentError(UpstreamError):
    """The service said nothing for as long as it may be silent."""


class Connection(asyncio.Protocol):
    """One connection, used for one request after the other."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._size = 0
        self._head_bytes = 0
        self._paused = self._informational = self._until_close = False
        self.active = False
        """A request is under way."""
        self.answered = self.headed = self.complete = False
        """The first byte, the whole head, the whole answer have come."""
        self.reusable = False
        self.uploading = False
        """The next move is the caller's: a body is on its way from it."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.timeout = 0.0
        self.touched = 0.0
        """Loop time of the last sign of life; for an idle connection, since when it is idle."""
        self.uses = 0

    def begin(self, timeout: float, now: float) -> None:
        """Before a request is written."""
        self.active, self.uses = True, self.uses + 1
        self.answered = self.headed = self.complete = self.reusable = False
        self._head_bytes, self.headers = 0, []
        self.timeout, self.touched = timeout, now

    @property
    def usable(self) -> bool:
        return self._error is None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self.touched = self._client.now()
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the service does not read what was written. Raises: UpstreamError."""
        if self._writable is not None:
            await self._writable
        if self._error is not None:
            raise self._error

    async def head(self) -> None:
        """Wait for status and headers. Raises: UpstreamError."""
        while not self.headed:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> tuple[bytes, bool]:
        """What has come of the body (at least a byte, unless it is the end), and whether that is all.

        Raises:
            UpstreamError: the answer broke off; what came of it has been returned before.
        """
        while not self._pieces and not self.complete:
            if self._error is not None:
                raise self._error
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused and not self.complete:
            self._paused = False
            self._transport.resume_reading()
        return data, self.complete

    def fail(self, error: BaseException) -> None:
        """End it here and now; whoever waits gets `error`."""
        if self._error is None:
            self._error = error
        self._wake()
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Called now and then: fails a request whose service is silent for too long."""
        if now - self.touched > self.timeout and not self.uploading and self._waiter is not None:
            self.fail(SilentError())

    async def _wait(self) -> None:
        self._waiter = self._client.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._writable is not None and self._error is not None and not self._writable.done():
            self._writable.set_result(None)

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.active or self.complete:
            self.fail(UpstreamError("bytes nobody asked for"))
            return
        self.touched = self._client.now()
        self.answered = True
        if not self.headed:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UpstreamError):
            self.fail(UpstreamError("no HTTP/1.1 answer"))
            return
        if not self.headed and self._head_bytes > MAX_HEAD_BYTES:
            self.fail(UpstreamError("an endless head"))
        elif self._size > HIGH_WATER and not self._paused and not self.complete:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._error is None:
            if self.active and self.headed and self._until_close and exc is None:
                self.complete = True
            self._error = UpstreamError("the connection was closed")
        self._client.lost(self)
        self._wake()

    def pause_writing(self) -> None:
        self._writable = self._client.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # From the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            raise UpstreamError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headed:  # behind the body they would be trailers, which nobody declared
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._informational = self.status < 200
        if self._informational:
            self.headers = []
            return
        self._until_close = self.status not in {204, 304} and not any(
            name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers
        )
        self.headed = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._informational:
            return
        self.complete = True
        self.reusable = not self._until_close and self._parser.should_keep_alive()
