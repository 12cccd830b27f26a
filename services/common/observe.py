"""Around every request: id, trace, duration, and an answer even when the handler fails."""

import time
from contextlib import suppress
from typing import Any, Final

import uuid_utils
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.log import Logger
from core.telemetry import HTTP_REQUEST_DURATION
from services.common.errors import document, from_exception

REQUEST_ID: Final = b"x-request-id"
UNMATCHED: Final = "unmatched"

_LOG = Logger("services.request")
_ID_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_TRACER: Final = trace.get_tracer("headrace.services")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The caller's id where it is harmless (1 to 128 of `A-Z a-z 0-9 . _ -`), else a new UUIDv7."""
    for name, value in headers:
        if name == REQUEST_ID and 0 < len(value) <= 128 and _ID_BYTES.issuperset(value):
            return value.decode("ascii")
    return str(uuid_utils.uuid7())


class Observe:
    """ASGI middleware, outermost. Labels durations with the route's template, never with the path."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Request(self._app, self._service, scope, send).run(receive)


class _Request:
    def __init__(self, app: ASGIApp, service: str, scope: Scope, send: Send) -> None:
        self._app, self._service, self._scope, self._send_on = app, service, scope, send
        self._id = request_id(scope["headers"])
        self._began = time.perf_counter()
        self._status = 0
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in {b"traceparent", b"tracestate"}
        }
        self._span = _TRACER.start_span(
            method, context=_PROPAGATOR.extract(carrier, context.Context()), kind=trace.SpanKind.SERVER
        )
        self._extra: list[tuple[bytes, bytes]] = [(REQUEST_ID, self._id.encode())]

    async def run(self, receive: Receive) -> None:
        self._scope.setdefault("state", {})["request_id"] = self._id
        attached = context.attach(trace.set_span_in_context(self._span))
        try:
            outgoing: dict[str, str] = {}
            _PROPAGATOR.inject(outgoing)
            self._extra += [(name.encode(), value.encode()) for name, value in outgoing.items()]
            await self._app(self._scope, receive, self._send)
        except Exception as error:
            # The last place that can answer: uvicorn's own 500 is plain text.
            await self._fail(error)
        finally:
            self._measure()
            context.detach(attached)
            self._span.end()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            took = (time.perf_counter() - self._began) * 1000
            timing = (b"server-timing", f"{self._service};dur={took:.1f}".encode())
            message["headers"] = [*message.get("headers", ()), *self._extra, timing]
        await self._send_on(message)

    async def _fail(self, error: Exception) -> None:
        problem = from_exception(error)
        if self._status:
            _LOG.error("the answer broke off", request=self._id)
            raise error
        body, media_type = document(problem, (self._scope.get("raw_path") or b"").decode("ascii", "replace"))
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        with suppress(OSError):
            await self._send({"type": "http.response.start", "status": problem.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})

    def _measure(self) -> None:
        route = route_template(self._scope)
        took = time.perf_counter() - self._began
        HTTP_REQUEST_DURATION.labels(self._service, route, str(self._status or 499)).observe(took)
        self._span.update_name(f"{self._span_method()} {route}")
        self._span.set_attribute("http.response.status_code", self._status)
        _LOG.debug("request", id=self._id, route=route, status=self._status, ms=round(took * 1000, 1))

    def _span_method(self) -> str:
        method: str = self._scope["method"]
        return method if method in _METHODS else "_OTHER"


def route_template(scope: Scope) -> str:
    """`/api/v1/organizations/{id}`, or `unmatched`: a label must not grow with what callers send."""
    route: Any = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else UNMATCHED
