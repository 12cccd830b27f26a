"""What the agents service reads: wake-ups of runs, where their events stand in the log, cancellations."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import asyncpg
import msgspec
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from core import telemetry
from core.contracts.agents import EVENTS, TASKS, TERMINAL, Head, head
from core.database import Database, dsn
from core.eventlog.api import EventLog, EventLogError, OffsetOutOfRangeError, Record
from core.log import Logger
from core.messaging.watchdog import Watchdog, group_lag
from core.settings import DatabaseSettings
from services.agents.submissions import CANCEL

WAKERS: Final = "agents"
"""Group on `agent.tasks`: one instance is woken for a run, whichever holds its partition."""
POSITIONS: Final = "agents.positions"
"""Group on `agent.events`."""

_PAUSE: Final = 0.5
_LAG_SECONDS: Final = 5.0
_log = Logger("agents.consumers")

_PLACES: Final = text(
    """
    update run r set event_partition = p.partition, first_offset = coalesce(p.first, r.first_offset),
           last_offset = coalesce(p.last, r.last_offset)
    from unnest(cast(:runs as text[]), cast(:partitions as int[]), cast(:firsts as bigint[]), cast(:lasts as bigint[]))
         as p (id, partition, first, last)
    where r.id = p.id
    """
)


class Follower:
    """One member of a group that works on whole batches and commits behind them.

    A batch that fails is read again, with a pause: `handle` sees a record at least once.
    """

    def __init__(
        self, log: EventLog, topic: str, group: str, handle: Callable[[list[Record]], Awaitable[None]]
    ) -> None:
        self._log, self._topic, self._group, self._handle = log, topic, group, handle
        self.name = f"{topic} {group}"
        self.watchdog = Watchdog(topic, group)

    async def run(self) -> None:
        """Until cancelled; joins anew where an error ends it, such as a log that is away at the start."""
        with self.watchdog.expected():
            while True:
                try:
                    await self._follow()
                except (EventLogError, OSError, TimeoutError) as error:
                    _log.warn(
                        "joins the group anew", topic=self._topic, group=self._group, error=str(error)[:300]
                    )
                await asyncio.sleep(_PAUSE)

    async def _follow(self) -> None:
        consumer = self._log.consumer([self._topic], self._group)
        try:
            await consumer.start()
            while True:
                try:
                    records = await consumer.poll(1000, 0.5)
                except OffsetOutOfRangeError as error:
                    _log.error("records expired unread", topic=error.topic, partition=error.partition)
                    await consumer.seek({(error.topic, error.partition): error.bounds.low})
                    continue
                self.watchdog.beat(consumer.assignment())
                if records:
                    await self._until_handled(records)
                    ends: dict[tuple[str, int], int] = {}
                    for record in records:
                        ends[(record.topic, record.partition)] = record.offset + 1
                    with suppress(EventLogError):
                        await consumer.commit(ends)
        finally:
            await consumer.close()

    async def _until_handled(self, records: list[Record]) -> None:
        while True:
            try:
                await self._handle(records)
                return
            except (DBAPIError, OSError, TimeoutError, PoolTimeoutError) as error:
                telemetry.CONSUMER_FAILURES.labels(self._topic, self._group).inc()
                _log.warn("batch failed", topic=self._topic, error=type(error).__name__)
            await asyncio.sleep(_PAUSE)


def wake_ups(log: EventLog, wake: Callable[[], None]) -> Follower:
    """Calls `wake` for each batch of `agent.tasks`."""

    async def handle(_: list[Record]) -> None:
        wake()

    return Follower(log, TASKS, WAKERS, handle)


def positions(log: EventLog, database: Database) -> Follower:
    """Notes where each run begins and ends in `agent.events`: a resume seeks there and scans nothing.

    Args:
        database: role `system`.
    """

    async def handle(records: list[Record]) -> None:
        found = [(record, head) for record in records if (head := _boundary(record)) is not None]
        if not found:
            return
        # One row a run: two of one statement would leave it open which wins.
        firsts = {head.subject: record.offset for record, head in found if head.seq == 1}
        lasts = {head.subject: record.offset for record, head in found if head.type in TERMINAL}
        partitions = {head.subject: record.partition for record, head in found}
        runs = sorted(partitions)
        async with database.writer() as connection:
            await connection.execute(
                _PLACES,
                {
                    "runs": runs,
                    "partitions": [partitions[run] for run in runs],
                    "firsts": [firsts.get(run) for run in runs],
                    "lasts": [lasts.get(run) for run in runs],
                },
            )

    return Follower(log, EVENTS, POSITIONS, handle)


async def measure_lag(log: EventLog) -> None:
    """Say every few seconds how far the groups are behind, from outside of them. Until cancelled."""
    while True:
        for topic, group in ((TASKS, WAKERS), (EVENTS, POSITIONS)):
            with suppress(EventLogError, OSError):
                behind = await group_lag(log, topic, group)
                telemetry.CONSUMER_LAG_RECORDS.labels(topic, group).set(behind.records)
                telemetry.CONSUMER_LAG_SECONDS.labels(topic, group).set(behind.seconds)
        await asyncio.sleep(_LAG_SECONDS)


def _boundary(record: Record) -> Head | None:
    """The head of an event that is a run's first or last."""
    try:
        found = head(record.value)
        if not found.subject.isascii() or not found.subject.isprintable():
            raise msgspec.ValidationError("no id of a run")
    except msgspec.MsgspecError:
        _log.error("no event", topic=record.topic, partition=record.partition, offset=record.offset)
        return None
    return found if found.seq == 1 or found.type in TERMINAL else None


class Cancellations:
    """Hears at once who wants a run to end; what it misses, the renewal of the leases finds.

    Args:
        cancel: called with the run's id and who asked.
    """

    def __init__(self, settings: DatabaseSettings, cancel: Callable[[str, str], None]) -> None:
        self._dsn, self._cancel = dsn(settings, "system"), cancel

    async def run(self) -> None:
        """Until cancelled; a connection that breaks is made anew."""
        while True:
            try:
                await self._listen()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warn("not listening for cancellations", error=type(error).__name__)
            await asyncio.sleep(1)

    async def _listen(self) -> None:
        connection = await asyncpg.connect(
            self._dsn, timeout=5, command_timeout=10, server_settings={"application_name": "headrace-agents"}
        )
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(lambda *_: closed.set())
            await connection.add_listener(CANCEL, self._heard)
            await closed.wait()
        finally:
            connection.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        run_id, _, by = payload.partition(" ")
        self._cancel(run_id, by)
