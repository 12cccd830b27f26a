"""One request on its way through: caller → service → caller, piece by piece.

Nothing is read ahead: request bodies go on as they come, answers go back as they come. The caller
going away cancels the service's work; the service breaking off breaks the caller's connection, so
that half an answer never looks whole.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from core.tasks import cancel
from services.common.body import too_large
from services.common.errors import Problem, unavailable
from services.gateway.breaker import Breaker
from services.gateway.client import Busy, Client, ConnectTimeoutError, SilentError, UpstreamError
from services.gateway.connection import Connection
from services.gateway.headers import Headers, request_headers, response_headers
from services.gateway.routes import Route

_WATCH_AFTER: Final = 0.05
"""Most answers are there sooner, and then nobody has to watch whether the caller stays."""
_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""Methods that mean the same twice (RFC 9110, 9.2.2)."""


class CallerGoneError(Exception):
    """The caller closed its connection before the answer was complete."""


class Exchange:
    """One request.

    Args:
        client: connections to the service.
        added: headers for the service (principal, ids).
        on_ask: called before the first byte goes to the service, or never; returns headers to add for it.
        on_answer: called with the status before the first byte goes back; returns headers to add.
            What it raises is raised by `run`, and nothing was sent.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        route: Route,
        client: Client,
        breaker: Breaker,
        added: Headers,
        on_ask: Callable[[], Headers],
        on_answer: Callable[[int], Headers],
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._route, self._client, self._added = route, client, added
        self._on_ask, self._on_answer = on_ask, on_answer
        self._breaker = breaker
        self._task = asyncio.current_task()
        self._watch: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        # Decided by framing alone (RFC 9112, 6.3): without either header there is no body.
        self._length: bytes | None = None
        self._has_body = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                self._length, self._has_body = value, value != b"0"
            elif name == b"transfer-encoding":
                self._has_body = True
        self._body_complete = not self._has_body
        self._gone = False
        self._finished = False
        self.started = False
        """True once the first byte of the answer went back."""

    async def run(self) -> None:
        """Pass the request on and the answer back.

        Raises:
            Problem: 413, 408, 502, 503 or 504; nothing was sent to the caller yet.
            CallerGoneError: nobody waits for an answer.
            UpstreamError: the service broke off after `started`.
        """
        try:
            await self._exchange()
        except asyncio.CancelledError:
            if self._gone and self._task is not None:
                self._task.uncancel()
                raise CallerGoneError from None
            raise
        except (UpstreamError, Busy, ConnectTimeoutError, OSError) as error:
            if self._gone:
                raise CallerGoneError from None
            if self.started:
                raise
            raise self._problem(error) from error
        finally:
            self._finished = True
            if self._watch is not None:
                self._watch.cancel()
            if self._connection is not None:
                self._client.release(self._connection)
            if self._sender is not None and not self._sender.done():
                await cancel(self._sender)

    async def _exchange(self) -> None:
        method = self._scope["method"]
        first = await self._next_piece() if self._has_body else b""
        if len(first) > self._route.max_body:
            raise too_large(self._route.max_body)
        self._watch = self._client.loop.call_later(_WATCH_AFTER, self._begin_watch)
        self._breaker.check()
        connection = await self._ask(method, first)
        self._breaker.succeeded()
        headers = response_headers(connection.headers)
        status = connection.status
        headers += self._on_answer(status)
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if method == "HEAD":
            await self._finish(b"")
            return
        while True:
            piece, last = await connection.read()
            if last:
                await self._finish(piece)
                return
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _ask(self, method: str, first: bytes) -> Connection:
        """Write the request and wait for the head of its answer.

        A connection that was kept may have been closed by the service in the same moment. Where nothing
        came back and the whole request is at hand, it is sent once more on a new one, if it may be.
        """
        timeout, whole = self._route.timeout, self._body_complete
        connection = self._connection = await self._client.take(timeout)
        self._added += self._on_ask()
        head = self._head(method, first)
        while True:
            try:
                if whole:
                    connection.write(head + first if first else head)
                else:
                    self._sender = asyncio.create_task(self._pump(connection, head, first))
                await connection.head()
            except UpstreamError:
                again = whole and method in _REPEATABLE and connection.uses > 1 and not connection.answered
                if not again:
                    raise
                self._client.release(connection)
                connection = self._connection = await self._client.take(timeout, fresh=True)
            else:
                return connection

    def _head(self, method: str, first: bytes) -> bytes:
        scope, lines = self._scope, []
        query = scope["query_string"]
        target = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
        verb = "GET" if method == "HEAD" else method
        lines.append(b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (verb.encode(), target, self._client.host_header))
        for name, value in request_headers(scope["headers"]):
            lines.append(b"%b: %b\r\n" % (name, value))
        for name, value in self._added:
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._length is not None:
            lines.append(b"content-length: %b\r\n\r\n" % self._length)
        elif not self._body_complete:
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        elif self._has_body or method in {"POST", "PUT", "PATCH"}:
            lines.append(b"content-length: %d\r\n\r\n" % len(first))
        else:
            lines.append(b"\r\n")
        return b"".join(lines)

    async def _pump(self, connection: Connection, head: bytes, piece: bytes) -> None:
        """The rest of a body, counted: without a length nobody announced how much will come."""
        size, chunked = 0, self._length is None
        try:
            connection.write(head)
            while True:
                size += len(piece)
                if size > self._route.max_body:
                    raise too_large(self._route.max_body)
                if piece:
                    connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    await connection.drain()
                if self._body_complete:
                    break
                connection.uploading = True
                piece = await self._next_piece()
                connection.uploading = False
            if chunked:
                connection.write(b"0\r\n\r\n")
        except UpstreamError:
            pass  # whoever waits for the answer meets it there
        except (Problem, CallerGoneError) as error:
            connection.fail(_Upload(error))

    async def _finish(self, piece: bytes) -> None:
        self._finished = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def _next_piece(self) -> bytes:
        try:
            async with asyncio.timeout(self._route.timeout):
                message: Message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, "request_timeout", "Request timeout", "The body did not arrive in time; send it again."
            ) from None
        if message["type"] == "http.disconnect":
            self._gone = True
            raise CallerGoneError
        self._body_complete = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    def _begin_watch(self) -> None:
        if self._finished:
            return
        if self._body_complete:
            self._watch = self._client.loop.create_task(self._watch_caller())
        else:
            self._watch = self._client.loop.call_later(_WATCH_AFTER, self._begin_watch)

    async def _watch_caller(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._finished and self._task is not None:
            self._gone = True
            self._task.cancel()

    def _problem(self, error: Exception) -> Problem:
        name = f"The {self._route.service} service"
        if isinstance(error, _Upload):
            if isinstance(error.cause, Problem):
                return error.cause
            raise CallerGoneError
        if isinstance(error, Busy):
            return unavailable(name)
        if isinstance(error, ConnectTimeoutError):
            self._breaker.failed()
            return unavailable(name)
        self._breaker.succeeded()
        if isinstance(error, SilentError):
            return Problem(
                504,
                "upstream_timeout",
                "The service did not answer in time",
                f"{name} was silent for {self._route.timeout:g} s. It may still do what was asked.",
                headers={"retry-after": "5"},
            )
        if isinstance(error, OSError):
            return unavailable(name)
        return Problem(
            502,
            "upstream_failed",
            "The service broke off",
            f"{name} closed the connection without an answer. It may have done what was asked.",
            headers={"retry-after": "1"},
        )


class _Upload(UpstreamError):  # noqa: N818 - a carrier
    """The body from the caller ended in something else than its end."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
