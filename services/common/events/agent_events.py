"""Follows all partitions of `agent.events` without a group, on every process that streams runs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import msgspec

from core.contracts.agents import EVENTS, TERMINAL, head
from core.eventlog.api import (
    EventLog,
    EventLogError,
    LogUnavailableError,
    Record,
    TopicChangedError,
)
from core.eventlog.partitioner import partition_for
from core.log import Logger
from services.common.events.positions import After, Kind, Span, Vector, channel_of, topic_epoch
from services.common.events.ring import Entry, Listener, Ring, names
from services.common.events.stream import EventStream

RING_BYTES: Final = 64 << 20
RING_SECONDS: Final = 900.0
WARM_SECONDS: Final = 60.0
"""At its start a process reads what is so old, to serve who reconnects to it."""
WARM_RECORDS: Final = 5_000
MAX_LOG_RECORDS: Final = 200_000
"""A conversation or user whose resume would read more of one partition is refused (`too_far`): nobody
knows where among them its events stand. Of a run that is known, so it may be as old as the log."""
QUEUE_BYTES: Final = 4 << 20
_CATCH_UP_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.5
_STEP: Final = 500
"""Records taken in before others may run."""
_LOG_READERS: Final = 2
"""Pieces of the log read at once; between two pieces a reader waits for its client, and holds up nobody."""
_PIECE: Final = 10_000
"""Records of a piece."""
_PIECE_BYTES: Final = 1 << 20
"""A piece ends early once so much of it is wanted."""

_log = Logger("services.events")


@dataclass(slots=True)
class Attached:
    """What a listener gets besides the events that come from now on: first `ranges` of the log (read
    them with `AgentEvents.history`), then `ring`."""

    channel: str
    kind: Kind
    after: After | None
    recovered: bool
    """False: something between `after` and now cannot be given; load the state elsewhere."""
    reason: str = ""
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    ring: list[Entry] = field(default_factory=list)


class AgentEvents:
    """The tail of this process, its memory, and the way to what is older.

    Args:
        log: started event log.
        ring_bytes: bound of the memory.
        ring_seconds: what is older goes.
    """

    def __init__(
        self, log: EventLog, *, ring_bytes: int = RING_BYTES, ring_seconds: float = RING_SECONDS
    ) -> None:
        self._log = log
        self.ring = Ring(ring_bytes, ring_seconds)
        self._topic_id = ""
        self._caught_up = asyncio.Event()
        self._readers = asyncio.Semaphore(_LOG_READERS)
        self.epoch = 0
        """Of the topic, in positions of conversations and users."""
        self.problem = "starting"
        """Why this process does not follow the log, for people; empty where it does."""

    @property
    def is_live(self) -> bool:
        return self._caught_up.is_set()

    @property
    def vector(self) -> Vector:
        """Up to where everything was taken in."""
        return Vector(self.epoch, tuple(offset for _, offset in sorted(self.ring.positions.items())))

    def next_offset(self, conversation: str) -> int:
        """Up to where the partition of a conversation was taken in."""
        return self.ring.positions[partition_for(conversation.encode(), len(self.ring.positions))]

    async def run(self) -> None:
        """Follow the topic until cancelled. What goes wrong is logged, told to the listeners, tried again."""
        while True:
            try:
                await self._follow_topic()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.problem = f"{type(error).__name__}: agent.events cannot be followed"
                text = str(error) if isinstance(error, EventLogError) else ""
                _log.warn("events are not followed", reason=self.problem, error=text)
            if self._caught_up.is_set():
                self._caught_up.clear()
                self.ring.lose("restarted")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_topic(self) -> None:
        topic = await self._log.topic(EVENTS)
        bounds = await self._log.bounds(EVENTS)
        warm = await self._log.offsets_for_time(EVENTS, int((time.time() - WARM_SECONDS) * 1000))
        starts = {
            partition: min(max(warm[partition], bound.low, bound.high - WARM_RECORDS), bound.high)
            for partition, bound in bounds.items()
        }
        self.ring.reset(starts)
        self._topic_id, self.epoch = topic.id, topic_epoch(topic.id)
        behind = {partition: bound.high for partition, bound in bounds.items()}
        self._check_caught_up(behind)
        async with aclosing(self._log.tail(EVENTS, starts)) as batches:
            async for batch in batches:
                await self._take(batch)
                self._check_caught_up(behind)

    def _check_caught_up(self, behind: Mapping[int, int]) -> None:
        if not self._caught_up.is_set() and all(self.ring.positions[p] >= end for p, end in behind.items()):
            self.problem = ""
            self._caught_up.set()
            _log.info("following agent.events", topic_id=self._topic_id, positions=self.ring.positions)

    async def _take(self, batch: list[Record]) -> None:
        now = time.monotonic()
        for index, record in enumerate(batch, 1):
            self.ring.add(record, now)
            if index % _STEP == 0:
                await asyncio.sleep(0)

    async def caught_up(self) -> bool:
        """Wait (some seconds at most) until the end of the log was reached once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._caught_up.wait()
        return self._caught_up.is_set()

    def follow(
        self,
        channel: str,
        after: After | None = None,
        span: Span | None = None,
        *,
        queue_bytes: int = QUEUE_BYTES,
    ) -> EventStream:
        """Events of a channel: `async with` it, look at `.recovered`, iterate (head, raw).

        Args:
            channel: `run:<id>`, `conversation:<id>` or `user:<tenant>/<id>`.
            after: what the reader has: (epoch, seq) of a run ((0, 0): nothing, give me all of it);
                (topic epoch, offset) of a conversation; a `Vector` of a user. None: from now on only.
            span: where the run's events stand, if that is known; needed where memory does not reach
                back. Not used for other channels.
            queue_bytes: a reader further behind than this is told `too_slow`.

        The stream of a run ends after its terminal event, the others never.

        Raises (when entered):
            ValueError: for a channel of another form, or a position of another kind.
            LogUnavailableError: the log is away; answer 503.
        """
        return EventStream(self, channel, after, span, queue_bytes)

    async def attach(
        self, channel: str, listener: Listener, after: After | None = None, span: Span | None = None
    ) -> Attached:
        """Tell `listener` of all events from now on, and find what it missed since `after`.

        Raises:
            ValueError: as `follow`.
            LogUnavailableError: the log is away or not caught up with yet; nothing was attached.
        """
        kind, identity = channel_of(channel)
        if after is not None and isinstance(after, Vector) != (kind == "user"):
            raise ValueError(f"this is not a position of {kind} channels")
        if not await self.caught_up():
            raise LogUnavailableError(f"agent.events is not followed now: {self.problem}")
        # Nothing may come between these and the plan: it says what came before the listener was there.
        self.ring.attach(channel, listener)
        if after is None:
            return Attached(channel, kind, None, True)
        if isinstance(after, Vector):
            plan = self._plan_user(channel, after)
        elif kind == "conversation":
            plan = self._plan_conversation(channel, identity, after)
        else:
            plan = self._plan_run(channel, identity, after, span)
        if plan.ranges:
            try:
                plan.reason = await self._unreadable(plan)
            except BaseException:
                # Whoever gave up waiting here never got the plan, and would not detach.
                self.ring.detach(channel, listener)
                raise
            plan.recovered = not plan.reason
        if not plan.recovered:
            plan.ranges, plan.ring = {}, []
        return plan

    async def _unreadable(self, plan: Attached) -> str:
        """Why the ranges of a plan cannot be given; empty where they can."""
        ranges = plan.ranges
        if plan.kind != "run" and any(end - start > MAX_LOG_RECORDS for start, end in ranges.values()):
            return "too_far"
        try:
            bounds = await self._log.bounds(EVENTS)
        except EventLogError:
            return "log_unavailable"
        return "expired" if any(bounds[p].low > start for p, (start, _) in ranges.items()) else ""

    def detach(self, channel: str, listener: Listener) -> None:
        self.ring.detach(channel, listener)

    def _plan_run(self, channel: str, run_id: str, after: tuple[int, int], span: Span | None) -> Attached:
        entries = self.ring.entries(channel)
        state, seq = self.ring.run(run_id), after[1]
        plan = Attached(channel, "run", after, True, ring=[e for e in entries if e.head.seq > seq])
        if plan.ring and plan.ring[0].head.seq == seq + 1:
            return plan
        if not plan.ring and state is not None and state.seq <= seq:
            return plan  # it has everything, or more than has come here yet
        if span is None:
            if plan.ring or state is not None:
                plan.recovered, plan.reason = False, "not_in_memory"
            # Else its events are still on their way: the reader counts them and notices a gap.
            return plan
        floor = self.ring.floors.get(span.partition)
        if floor is None:
            plan.recovered, plan.reason = False, "topic_changed"
        elif span.first < floor:
            end = floor if span.last is None else min(floor, span.last + 1)
            plan.ranges = {span.partition: (span.first, end)}
        return plan

    def _plan_conversation(self, channel: str, identity: str, after: tuple[int, int]) -> Attached:
        if after[0] != self.epoch:
            return Attached(channel, "conversation", after, False, "topic_changed")
        start = after[1] + 1
        partition = partition_for(identity.encode(), len(self.ring.floors))
        ring = [entry for entry in self.ring.entries(channel) if entry.offset >= start]
        plan = Attached(channel, "conversation", after, True, ring=ring)
        if start < self.ring.floors[partition]:
            plan.ranges = {partition: (start, self.ring.floors[partition])}
        return plan

    def _plan_user(self, channel: str, after: Vector) -> Attached:
        if after.epoch != self.epoch or len(after.offsets) != len(self.ring.floors):
            return Attached(channel, "user", after, False, "topic_changed")
        ring = [
            entry for entry in self.ring.entries(channel) if entry.offset >= after.offsets[entry.partition]
        ]
        plan = Attached(channel, "user", after, True, ring=ring)
        for partition, start in enumerate(after.offsets):
            if start < self.ring.floors[partition]:
                plan.ranges[partition] = (start, self.ring.floors[partition])
        return plan

    async def history(self, plan: Attached) -> AsyncGenerator[Entry, None]:
        """The events of the plan that are not in memory, oldest first within each partition.

        Raises:
            LogUnavailableError, OffsetOutOfRangeError, TopicChangedError: the rest cannot be given.
        """
        if not plan.ranges:
            return
        topic_id = self._topic_id
        identity = plan.channel.partition(":")[2]
        needle = identity.rpartition("/")[2].encode()
        seen: dict[str, tuple[int, int]] = {}
        if plan.kind == "run" and isinstance(plan.after, tuple):
            seen[identity] = (0, plan.after[1])
        if (await self._log.topic(EVENTS)).id != topic_id:
            raise TopicChangedError("agent.events was made anew")
        for partition, (start, end) in sorted(plan.ranges.items()):
            at = start
            while at < end:
                async with self._readers:
                    records, at = await self._piece(partition, at, end, needle)
                for record in records:
                    entry = _wanted(record, plan.channel, seen)
                    if entry is None:
                        continue
                    yield entry
                    if plan.kind == "run" and entry.head.type in TERMINAL:
                        return

    async def _piece(self, partition: int, start: int, end: int, needle: bytes) -> tuple[list[Record], int]:
        """Records of the range that may be wanted, and where the next piece begins."""
        found: list[Record] = []
        at, size = start, 0
        async with aclosing(self._log.read(EVENTS, partition, start, min(end, start + _PIECE))) as batches:
            async for batch in batches:
                for record in batch:
                    at = record.offset + 1
                    if needle in record.value:
                        found.append(record)
                        size += len(record.value)
                        if size >= _PIECE_BYTES:
                            return found, at
                await asyncio.sleep(0)
        return found, at


def _wanted(record: Record, channel: str, seen: dict[str, tuple[int, int]]) -> Entry | None:
    try:
        found = head(record.value)
    except msgspec.MsgspecError:
        return None
    if channel not in names(found):
        return None
    epoch, seq = seen.get(found.subject, (0, 0))
    if found.seq <= seq or found.epoch < epoch:
        return None
    seen[found.subject] = (found.epoch, found.seq)
    return Entry(found, record.value, record.partition, record.offset, 0.0)
