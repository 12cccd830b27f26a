"""Events of a run as server-sent events: `id:` is the event's seq, so a client resumes by `Last-Event-ID`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from core.tasks import cancel
from services.agents.store import Run
from services.common import errors
from services.common.errors import Problem, unavailable
from services.common.events import AgentEvents, Entry, Span, StreamLostError

_LAST_EVENT_ID: Final = "last-event-id"
_MAX_SEQ: Final = 10


def after_of(request: Request, after_seq: int | None) -> int:
    """The last event that the client has: by its header, else by the query.

    Raises:
        Problem: 422 for a header that is no number.
    """
    header = request.headers.get(_LAST_EVENT_ID, "").strip()
    if not header:
        return after_seq or 0
    if not (header.isascii() and header.isdecimal() and len(header) <= _MAX_SEQ):
        raise Problem(
            422, "invalid_last_event_id", "Last-Event-ID refused", "Send the `id` of the last event you have."
        )
    return int(header)


def span_of(found: Run) -> Span | None:
    """Where the run's events stand, once that is known."""
    if found.event_partition is None or found.first_offset is None:
        return None
    return Span(found.event_partition, found.first_offset, found.last_offset)


def events_of(
    found: Run, events: AgentEvents, after: int, drained: asyncio.Event, heartbeat: float
) -> Response:
    """The answer: a stream that ends with the run's terminal event; 204 where the client has that one.

    A comment comes each `heartbeat` seconds.
    """
    if found.ended and after >= found.last_seq:
        # What tells an EventSource not to come back.
        return Response(status_code=204)
    return _EventStreamResponse(found, events, after, drained, heartbeat)


class _EventStreamResponse(Response):
    media_type = "text/event-stream"

    def __init__(
        self, found: Run, events: AgentEvents, after: int, drained: asyncio.Event, heartbeat: float
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-store", "x-accel-buffering": "no", "x-run-id": found.id}
        )
        # The length is not known.
        del self.headers["content-length"]
        self._run, self._events, self._after, self._drained = found, events, after, drained
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self._events.follow(
            f"run:{self._run.id}", (self._run.epoch, self._after), span_of(self._run)
        )
        async with stream:
            if not stream.recovered:
                problem = _not_recovered(stream.reason)
                await errors.response(problem, scope["path"])(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_chunk(b"retry: 1000\n\n"))
            tasks = [
                asyncio.create_task(_forward(stream.entries(), send)),
                asyncio.create_task(_beat(send, self._heartbeat)),
                asyncio.create_task(_gone(receive)),
                asyncio.create_task(self._drained.wait()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(*tasks)
            for task in done:
                task.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _forward(entries: AsyncGenerator[Entry, None], send: Send) -> None:
    async with aclosing(entries):
        try:
            async for entry in entries:
                head = entry.head
                await send(
                    _chunk(b"id: %d\nevent: %s\ndata: %s\n\n" % (head.seq, head.type.encode(), entry.raw))
                )
        except StreamLostError as error:
            # Nothing is left out: the client comes back with the last id it has.
            await send(_chunk(b": lost %s\n\n" % error.reason.encode()))


async def _beat(send: Send, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await send(_chunk(b": alive\n\n"))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _not_recovered(reason: str) -> Problem:
    if reason in {"expired", "topic_changed"}:
        return Problem(
            410,
            "events_expired",
            "The events are gone",
            "Events are kept for 7 days; read the run and the conversation's messages instead.",
        )
    return unavailable("The event log")
