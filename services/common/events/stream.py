"""One reader of a channel, as an asynchronous iterator that never leaves a gap."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

from core.contracts.agents import TERMINAL, Head
from core.eventlog.api import EventLogError
from services.common.events.positions import After, Span
from services.common.events.ring import Entry

if TYPE_CHECKING:
    from services.common.events.agent_events import AgentEvents, Attached


class StreamLostError(Exception):
    """The stream cannot go on without a gap; `reason` says why. Follow again from the last event read.

    `too_slow`: the reader was too far behind. `gap`: the log lacks an event. `restarted`,
    `log_unavailable`, `expired`: this process lost its place in the log, or the log its records.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream of events was lost: {reason}")
        self.reason = reason


class EventStream:
    """Made by `AgentEvents.follow`."""

    def __init__(
        self,
        events: "AgentEvents",
        channel: str,
        after: After | None,
        span: Span | None,
        queue_bytes: int,
    ) -> None:
        self._events, self._channel, self._after, self._span = events, channel, after, span
        self._room = queue_bytes
        self._queue: deque[Entry] = deque()
        self._lost = ""
        self._news = asyncio.Event()
        self._plan: Attached | None = None
        self._seq = after[1] if isinstance(after, tuple) and channel.startswith("run:") else None
        self.recovered = False
        """False: what lies between `after` and now cannot be given; what comes is from now on."""
        self.reason = ""
        self.epoch = 0

    async def __aenter__(self) -> Self:
        self._plan = await self._events.attach(self._channel, self, self._after, self._span)
        self.recovered, self.reason, self.epoch = self._plan.recovered, self._plan.reason, self._events.epoch
        self._plan.ring.reverse()  # taken from its end, so that what was read is let go
        if not self.recovered:
            self._seq = None
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._events.detach(self._channel, self)
        self._queue.clear()

    def on_event(self, entry: Entry) -> None:
        """Called by the ring."""
        if self._lost:
            return
        self._room -= len(entry.raw)
        if self._room < 0:
            self.on_lost("too_slow")
            return
        self._queue.append(entry)
        self._news.set()

    def on_lost(self, reason: str) -> None:
        """Called by the ring."""
        self._lost = self._lost or reason
        self._news.set()

    def __aiter__(self) -> AsyncIterator[tuple[Head, bytes]]:
        return self._pairs()

    async def _pairs(self) -> AsyncGenerator[tuple[Head, bytes], None]:
        async with aclosing(self.entries()) as entries:
            async for entry in entries:
                yield entry.head, entry.raw

    async def entries(self) -> AsyncGenerator[Entry, None]:
        """The same with partition and offset.

        Raises:
            StreamLostError: instead of leaving an event out.
        """
        is_run = self._channel.startswith("run:")
        if is_run and self._has_everything():
            return
        # Each generator closes the one that it reads: one that is only dropped is closed by the event loop some
        # time later, perhaps when the process ends and closes it too.
        async with aclosing(self._unfiltered()) as unfiltered:
            async for entry in unfiltered:
                if is_run and not self._is_next(entry):
                    continue
                yield entry
                if is_run and entry.head.type in TERMINAL:
                    return

    async def _unfiltered(self) -> AsyncGenerator[Entry, None]:
        plan = self._plan
        assert plan is not None, "follow is a context manager"
        try:
            async with aclosing(self._events.history(plan)) as history:
                async for entry in history:
                    yield entry
        except EventLogError as error:
            raise StreamLostError("log_unavailable") from error
        while plan.ring:
            yield plan.ring.pop()
        while True:
            while self._queue:
                entry = self._queue.popleft()
                self._room += len(entry.raw)
                yield entry
            if self._lost:
                raise StreamLostError(self._lost)
            self._news.clear()
            await self._news.wait()

    def _has_everything(self) -> bool:
        state = self._events.ring.run(self._channel.partition(":")[2])
        return state is not None and state.done and self._seq is not None and state.seq <= self._seq

    def _is_next(self, entry: Entry) -> bool:
        """Whether the run's event is new to this reader. Raises: StreamLostError where one before it is missing."""
        seq = entry.head.seq
        if self._seq is not None:
            if seq <= self._seq:
                return False
            if seq != self._seq + 1:
                raise StreamLostError("gap")
        self._seq = seq
        return True
