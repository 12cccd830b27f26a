"""Follows `usage.records` on every instance, without a group, from the published watermark on.

The log may be away, the topic may be made anew, records may be purged or expire before they were
read: each leads to a fresh start from the watermark, never to a wrong sum. Until the tail has caught
up again answers say `live: false`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from core.eventlog.api import EventLog, EventLogError, OffsetOutOfRangeError
from core.ids import identity
from core.log import Logger
from services.billing.tail import MAX_RECORDS, Cell, Tail

TOPIC: Final = "usage.records"
POLL_SECONDS: Final = 0.2
WATERMARK_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.5
FRESH_SECONDS: Final = 5.0
"""`live` needs a look at the end of the topic that is no older."""
HISTORY: Final = 20_000
"""Records in front of the watermark that are read at the start, to know their identities."""
_READ: Final = 5_000
_STEP: Final = 250
"""Records taken in before others may run: about 3 ms."""

_log = Logger("billing.live")


@dataclass(frozen=True, slots=True)
class Published:
    """What cells reflect: for each topic id and partition the next offset."""

    offsets: Mapping[str, Mapping[int, int]]
    lake_version: int | None


@dataclass(frozen=True, slots=True)
class View:
    """The tail behind one state of the published cells."""

    cells: tuple[Cell, ...]
    topic_id: str
    offsets: Mapping[int, int]
    """Next offset of each partition: cells and tail together contain all before it."""
    live: bool


class StaleCellsError(Exception):
    """The cells are older than the tail's start: read them again."""


class LiveUsage:
    """The tail of this process and the task that feeds it.

    Args:
        log: started event log.
        published: reads what the cells reflect now, from the primary.
        max_records: bound of the memory (about 100 bytes each).
    """

    def __init__(
        self, log: EventLog, published: Callable[[], Awaitable[Published]], *, max_records: int = MAX_RECORDS
    ) -> None:
        self._log, self._published = log, published
        self._tail = Tail(max_records)
        self._topic_id = ""
        self._caught_up = float("-inf")  # seconds
        self._checked = float("-inf")  # seconds
        self.problem = "starting"
        """Why answers are not live, for people; empty where they are."""

    @property
    def held(self) -> int:
        return self._tail.held

    @property
    def is_live(self) -> bool:
        """True where the end of the topic was reached a moment ago and nothing is missing before it."""
        fresh = time.monotonic() - self._caught_up < FRESH_SECONDS
        return fresh and bool(self._topic_id) and self._tail.complete

    def knows(self, tenant: str, source: str, event_id: str) -> bool:
        """True where the event is among the records of the topic that this process holds, landed or not."""
        return self._tail.knows(identity(tenant, source, event_id))

    async def run(self) -> None:
        """Follow the topic until cancelled."""
        while True:
            try:
                await self._round()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # Whatever a driver raises: quota falls back to the cells and comes back by itself.
                self._problem(f"{type(error).__name__}: the log or the database does not answer", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(POLL_SECONDS)

    async def view(self, published: Published, tenant: str) -> View | None:
        """The tenant's usage behind cells that reflect `published`; None where the tail is incomplete.

        Raises:
            StaleCellsError: newer cells were published meanwhile.
        """
        topic_id = self._topic_id
        if not topic_id:
            return None
        wanted = self._watermark(published)
        await self._advance(wanted)
        if topic_id != self._topic_id or self._tail.reflected != wanted:
            raise StaleCellsError
        if not self._tail.complete:
            return None
        # Copies: the asker may wait for the database while the tail goes on, and its cells with it.
        cells = tuple(replace(cell) for cell in self._tail.cells(tenant))
        return View(cells, topic_id, self._tail.positions, self.is_live)

    def _watermark(self, published: Published) -> dict[int, int]:
        offsets = published.offsets.get(self._topic_id, {})
        return {partition: offsets.get(partition, 0) for partition in self._tail.partitions}

    async def _advance(self, watermark: Mapping[int, int]) -> None:
        topic_id = self._topic_id
        for _ in self._tail.advance(watermark):
            await asyncio.sleep(0)
            if topic_id != self._topic_id:
                return

    async def _round(self) -> None:
        if time.monotonic() - self._checked > WATERMARK_SECONDS:
            await self._check()
        try:
            await self._read()
        except OffsetOutOfRangeError as error:
            self._problem("records of the topic went away before they were read", error)
            await self._restart()

    async def _check(self) -> None:
        """Compare topic and watermark with what we follow; start anew where they do not continue it."""
        topic = await self._log.topic(TOPIC)
        before = self._tail.reflected
        if topic.id != self._topic_id:
            await self._restart()
        else:
            watermark = self._watermark(await self._published())
            if any(watermark[partition] < offset for partition, offset in before.items()):
                self._problem("the published watermark went back; the cells were rebuilt")
                await self._restart()
            else:
                await self._advance(watermark)
        self._checked = time.monotonic()

    async def _restart(self) -> None:
        topic = await self._log.topic(TOPIC)
        bounds = await self._log.bounds(TOPIC)
        published = (await self._published()).offsets.get(topic.id, {})
        watermark = {partition: published.get(partition, 0) for partition in bounds}
        starts = {
            partition: min(max(bound.low, watermark[partition] - HISTORY), bound.high)
            for partition, bound in bounds.items()
        }
        self._caught_up = float("-inf")  # seconds
        self._topic_id = topic.id
        self._tail.reset(watermark, starts)
        _log.info("following usage.records", topic_id=topic.id, watermark=watermark, starts=starts)

    async def _read(self) -> None:
        bounds = await self._log.bounds(TOPIC)
        ends = {}
        for partition, position in self._tail.positions.items():
            if partition not in bounds or bounds[partition].high < position:
                await self._restart()
                return
            ends[partition] = bounds[partition].high
        for partition, end in ends.items():
            while (start := self._tail.positions.get(partition, end)) < end:
                until = min(end, start + min(_READ, self._tail.room))
                if until <= start:
                    self._problem(
                        f"{self._tail.held} records wait to be rolled up, more than this instance keeps; "
                        "is Dagster running?"
                    )
                    return
                await self._take(partition, start, until)
        self._caught_up = time.monotonic()
        if self._tail.complete:
            self._problem("")
        else:
            self._problem(
                "records behind the published cells are gone from the topic; the next slice mends it"
            )

    async def _take(self, partition: int, start: int, end: int) -> None:
        topic_id = self._topic_id
        async for batch in self._log.read(TOPIC, partition, start, end):
            for index in range(0, len(batch), _STEP):
                if topic_id != self._topic_id:
                    return
                part = batch[index : index + _STEP]
                position = self._tail.positions[partition]
                # The watermark may have passed some of these while they were being read.
                self._tail.add(partition, [record for record in part if record.offset >= position])
                await asyncio.sleep(0)

    def _problem(self, text: str, error: BaseException | None = None) -> None:
        if text and text != self.problem:
            data = {} if error is None else {"error": str(error) if isinstance(error, EventLogError) else ""}
            _log.warn("live usage is not live", reason=text, **data)
        elif self.problem and not text:
            _log.info("live usage is live")
        self.problem = text
