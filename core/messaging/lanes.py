"""Lanes: work on a group's records one at a time per key and many keys at once.

A partition's committed offset is its low-water mark: everything below it is done, so a crash repeats
at most what was in flight and skips nothing. Handlers therefore see a record at least once and use
the inbox (`core.messaging.inbox`) where twice would matter.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from opentelemetry import trace

from core import telemetry
from core.eventlog.api import EventLog, LogUnavailableError, OffsetOutOfRangeError, Record, TopicPartition
from core.log import Logger
from core.messaging.trace import consumer_span
from core.messaging.watchdog import Watchdog
from core.tasks import cancel

REVOKE_SECONDS: Final = 2.0
"""Work in flight gets this long when partitions go to another member: the group waits for us."""
STOP_SECONDS: Final = 5.0
"""The same when we end."""
_FIRST_PAUSE: Final = 0.1
_LAST_PAUSE: Final = 10.0

Handler = Callable[[Record], Awaitable[None]]
Bury = Callable[[Record, Exception], Awaitable[None]]

_log = Logger("headrace.lanes")


@dataclass(slots=True)
class _Partition:
    """What of a partition was read and what of it is done."""

    pending: deque[int] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)
    read: int = -1
    """Last offset taken in."""
    low: int | None = None
    """Next offset to commit."""
    committed: int | None = None
    gone: bool = False
    """Taken away: what waits is dropped."""
    running: int = 0

    def begin(self, offset: int) -> None:
        self.pending.append(offset)
        self.read = offset

    def finish(self, offset: int) -> None:
        self.done.add(offset)
        while self.pending and self.pending[0] in self.done:
            first = self.pending.popleft()
            self.done.remove(first)
            self.low = first + 1


@dataclass(slots=True)
class _Item:
    record: Record
    partition: _Partition


class Lanes:
    """Consumes topics as one member of a group until `stop()`.

    Args:
        log: a started event log.
        handler: works on one record; raising means "again later", with growing pauses, while other
            keys go on.
        in_flight: most records read and not done; reading pauses there.
        in_flight_bytes: the same in bytes of their values.
        concurrency: most handlers at once.
        attempts, bury: after so many failures the record is given to `bury`, which keeps it somewhere
            durable; without `bury` a record is tried for ever, because skipping is losing.
        commit_seconds: low-water marks are stored this often, and whenever partitions go or we end.
    """

    def __init__(
        self,
        log: EventLog,
        topics: Sequence[str],
        group: str,
        handler: Handler,
        *,
        in_flight: int = 1000,
        in_flight_bytes: int = 32_000_000,
        concurrency: int = 32,
        attempts: int = 8,
        bury: Bury | None = None,
        commit_seconds: float = 0.2,
        from_start: bool = True,
    ) -> None:
        self._handler, self._bury, self._attempts = handler, bury, attempts
        self._group, self._commit_seconds = group, commit_seconds
        self._consumer = log.consumer(topics, group, from_start=from_start, on_revoked=self._revoked)
        self._limit, self._limit_bytes = in_flight, in_flight_bytes
        self._slots = asyncio.Semaphore(concurrency)
        self._count = self._bytes = 0
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._lanes: dict[tuple[str, int, bytes], deque[_Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()
        self._unkeyed = itertools.count()
        self.watchdog = Watchdog(",".join(topics), group)

    @property
    def in_flight(self) -> int:
        """Records read and not done."""
        return self._count

    def stop(self) -> None:
        """Ask `run` to end: what runs is finished and committed, what waits is left to others."""
        self._stopping.set()
        for partition in self._partitions.values():
            partition.gone = True

    async def run(self) -> None:
        """Raises: UnknownTopicError, LogUnavailableError where the group cannot be joined at all."""
        committing = asyncio.create_task(self._commit_regularly(), name=f"lanes-{self._group}-commit")
        try:
            with self.watchdog.expected():
                await self._consumer.start()
                while not self._stopping.is_set():
                    await self._take_in()
        finally:
            await self._let_go([*self._partitions], STOP_SECONDS)
            await cancel(committing, *self._tasks)
            await self._consumer.close()

    async def _take_in(self) -> None:
        self._forget_lost()
        held = self._consumer.assignment()
        full = self._count >= self._limit or self._bytes >= self._limit_bytes
        # Polling goes on while nothing may be read: it is what shows the group that we live.
        (self._consumer.pause if full else self._consumer.resume)(held)
        try:
            records = await self._consumer.poll(max(1, self._limit - self._count), 0.05 if full else 0.5)
        except OffsetOutOfRangeError as error:
            _log.error(
                "records expired or were purged before this group read them",
                group=self._group, topic=error.topic, partition=error.partition,
                position=error.offset, low=error.bounds.low,
            )  # fmt: skip
            self._partitions.pop((error.topic, error.partition), None)
            await self._consumer.seek({(error.topic, error.partition): error.bounds.low})
            return
        self.watchdog.beat(self._consumer.assignment())
        if not self._stopping.is_set():
            for record in records:
                self._enqueue(record)

    def _enqueue(self, record: Record) -> None:
        place = (record.topic, record.partition)
        partition = self._partitions.get(place)
        if partition is None or record.offset <= partition.read:
            # Read again from an earlier position: it was lost and came back.
            if partition is not None:
                partition.gone = True
            partition = self._partitions[place] = _Partition()
        partition.begin(record.offset)
        self._count += 1
        self._bytes += len(record.value)
        # Records without a key have no order among them.
        key = record.key or b"\0unkeyed %d" % next(self._unkeyed)
        lane = self._lanes.get((*place, key))
        if lane is None:
            lane = self._lanes[(*place, key)] = deque()
            task = asyncio.create_task(self._drive((*place, key), lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        lane.append(_Item(record, partition))

    async def _drive(self, name: tuple[str, int, bytes], lane: deque[_Item]) -> None:
        """Work on a lane until it is empty."""
        while lane:
            item = lane[0]
            if not item.partition.gone:
                async with self._slots:
                    item.partition.running += 1
                    try:
                        if not item.partition.gone and await self._handle(item):
                            item.partition.finish(item.record.offset)
                    finally:
                        item.partition.running -= 1
            lane.popleft()
            self._count -= 1
            self._bytes -= len(item.record.value)
            async with self._changed:
                self._changed.notify_all()
        del self._lanes[name]

    async def _handle(self, item: _Item) -> bool:
        """True once the record is done (or buried); False where it was taken away meanwhile."""
        for attempt in itertools.count(1):
            span = consumer_span(item.record, self._group)
            try:
                with trace.use_span(span, end_on_exit=True):
                    await self._handler(item.record)
                return True
            except Exception as error:
                telemetry.CONSUMER_FAILURES.labels(item.record.topic, self._group).inc()
                _log.warn(
                    "handler failed", group=self._group, topic=item.record.topic, partition=item.record.partition,
                    offset=item.record.offset, attempt=attempt, error=type(error).__name__,
                )  # fmt: skip
                if self._bury is not None and attempt >= self._attempts:
                    await self._bury(item.record, error)
                    return True
            await self._pause(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LAST_PAUSE), item.partition)
            if item.partition.gone:
                return False
        raise AssertionError("unreachable")

    async def _pause(self, seconds: float, partition: _Partition) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: partition.gone)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._commit_seconds)
            await self._commit([*self._partitions])

    async def _commit(self, places: Sequence[TopicPartition]) -> None:
        """Store the low-water marks that have moved; a log that is away is asked again next time."""
        marks = {
            place: partition.low
            for place in places
            if (partition := self._partitions.get(place)) is not None
            and partition.low is not None
            and partition.low != partition.committed
        }
        if not marks:
            return
        try:
            fenced = await self._consumer.commit(marks)
        except LogUnavailableError as error:
            _log.warn("commit waits for the event log", group=self._group, reason=str(error))
            return
        for place, mark in marks.items():
            partition = self._partitions.get(place)
            if partition is None:
                continue
            if place in fenced:
                await self._drop(place)
            else:
                partition.committed = mark

    async def _revoked(self, places: frozenset[TopicPartition]) -> None:
        await self._let_go([*places], REVOKE_SECONDS)

    async def _let_go(self, places: Sequence[TopicPartition], seconds: float) -> None:
        """Start nothing more of these partitions, wait for what runs, commit."""
        leaving = [partition for place in places if (partition := self._partitions.get(place)) is not None]
        for partition in leaving:
            partition.gone = True
        async with self._changed:
            self._changed.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: not any(partition.running for partition in leaving))
        await self._commit(places)
        for place in places:
            self._partitions.pop(place, None)

    async def _drop(self, place: TopicPartition) -> None:
        self._partitions.pop(place).gone = True
        async with self._changed:
            self._changed.notify_all()

    def _forget_lost(self) -> None:
        """Partitions that went without a call: another member reads them from the last commit."""
        for place in self._partitions.keys() - self._consumer.assignment():
            if not self._partitions[place].gone:
                self._partitions.pop(place).gone = True
