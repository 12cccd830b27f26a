"""The way of an event: outbox, topic, published cells. Each place may hold something up."""

import asyncio
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg2

from core.conservation import NOBODYS
from core.database import dsn
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog
from core.queue import open_queue
from core.queue.api import Depth
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings, QueueSettings
from core.topology import QUEUES, dead_letters_of
from deploy.doctor.finding import Finding, Level, few
from deploy.installation import Installation
from deploy.session import settings_of

BACKLOG = 10_000
"""Records; the alert on backlogs fires here too."""
LATE_SECONDS = 30
SHOWN = 5
WARN_SECONDS, FAIL_SECONDS = 120, 300
"""How long a record may wait for the lake; usually it is below a minute."""
USAGE, AUDIT = "usage.records", "audit.logs"


def _query(installation: Installation, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(
        dsn(settings_of(installation, DatabaseSettings), "system"), connect_timeout=3
    )
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        connection.close()


def relay_lag(installation: Installation) -> Iterator[Finding]:
    """Rows that wait in the outboxes."""
    if not installation.run.locked():
        return
    for table, name in (("outbox", "outbox"), ("queue_outbox", "outbox of the queues")):
        ((waiting, seconds),) = _query(
            installation,
            f"select count(*), coalesce(extract(epoch from clock_timestamp() - min(enqueued_at)), 0)::float from {table}",
        )
        detail = f"{waiting} records wait, the oldest for {seconds:.0f} s"
        if waiting > BACKLOG or seconds > LATE_SECONDS:
            yield Finding(name, Level.FAIL, detail, "the relay does not keep up: `headrace logs relay`")
        else:
            yield Finding(name, Level.OK, detail)


def publication_lag(installation: Installation) -> Iterator[Finding]:
    """Records of the topic that the published cells do not reflect yet."""
    if installation.run.locked():
        yield judge("usage", "in the published cells", asyncio.run(unpublished(installation, USAGE)))


def usage_owners(installation: Installation) -> Iterator[Finding]:
    """Usage of organisations that do not exist: it is counted and charged to nobody."""
    if not installation.run.locked():
        return
    if found := [f"{tenant} ({events})" for tenant, events, *_ in _query(installation, NOBODYS)]:
        detail = f"events of organisations that do not exist are charged to nobody: {few(found, SHOWN)}"
        mend = "a producer of usage.records names a wrong `tenant`: mend it, void what it sent, send it again under the right one"
        yield Finding("usage owners", Level.FAIL, detail, mend)
    else:
        yield Finding("usage owners", Level.OK, "every counted event belongs to an organisation")


def audit_lag(installation: Installation) -> Iterator[Finding]:
    """Audit records that have not landed in the lake yet."""
    if installation.run.locked():
        yield judge("audit", "in the lake", asyncio.run(not_landed(installation, AUDIT)))


@dataclass(frozen=True, slots=True)
class Waiting:
    """What stands in a topic behind a position."""

    records: int
    oldest: float = 0.0
    """Seconds since the log took the first of them."""
    lost: int = 0
    """How many of them the log has deleted already."""


async def unpublished(installation: Installation, topic: str) -> Waiting:
    """Records of `topic` behind the watermark of the published cells."""
    rows = _query(installation, "select topic_id, partition, next_offset from usage_watermark")
    async with _log(installation) as log:
        topic_id = (await log.topic(topic)).id
        return await behind(
            log, topic, {partition: offset for of, partition, offset in rows if of == topic_id}
        )


async def not_landed(installation: Installation, topic: str, table: str = "audit_events") -> Waiting:
    """Records of `topic` behind the positions that were committed with the table."""
    from assets.slices.progress import landed_offsets  # noqa: PLC0415
    from core.lake import Lake  # noqa: PLC0415

    handle = Lake(settings_of(installation, ObjectSettings)).open(table)
    async with _log(installation) as log:
        info = await log.topic(topic)
        return await behind(log, topic, landed_offsets(handle, info.id, info.partitions))


def _log(installation: Installation) -> EventLog:
    return open_eventlog(
        settings_of(installation, EventLogSettings), settings_of(installation, DatabaseSettings)
    )


async def behind(log: EventLog, topic: str, reached: Mapping[int, int]) -> Waiting:
    """Count what stands behind the next offsets in `reached` (0 where absent) and look at the first of each."""
    records = lost = 0
    oldest = math.inf
    for partition, bounds in (await log.bounds(topic)).items():
        begin = reached.get(partition, 0)
        first = max(begin, bounds.low)
        records += max(0, bounds.high - begin)
        lost += first - begin
        if first < bounds.high:
            async for batch in log.read(topic, partition, first, first + 1):
                oldest = min([oldest, *(record.timestamp_ms for record in batch)])
    return Waiting(records, max(0.0, time.time() - oldest / 1000) if oldest < math.inf else 0.0, lost)


def judge(check: str, how: str, waiting: Waiting) -> Finding:
    """Waiting is normal for about a minute; a record that waits for long is held up by something."""
    if waiting.records <= 0:
        return Finding(check, Level.OK, f"every record is {how}")
    if waiting.lost:
        detail = f"the log has deleted {waiting.lost} records that were not {how}"
        return Finding(check, Level.FAIL, detail, "see the sensor's last tick in the Dagster UI")
    detail = f"{waiting.records} records are not {how} yet, the first of them for {waiting.oldest:.0f} s"
    for limit, level in ((FAIL_SECONDS, Level.FAIL), (WARN_SECONDS, Level.WARN)):
        if waiting.oldest > limit:
            mend = "look at the runs in the Dagster UI: a red check or a stopped sensor holds them up"
            return Finding(check, level, detail, mend)
    return Finding(check, Level.OK, detail)


def dead_letters(installation: Installation) -> Iterator[Finding]:
    """Records that the event log or every queue refused for good."""
    if not installation.run.locked():
        return
    found = False
    for table, name, kind in (
        ("outbox_dead", "topic", "records"),
        ("queue_outbox_dead", "family", "messages"),
    ):
        rows = _query(
            installation, f"select {name}, code, count(*) from {table} group by 1, 2 order by 3 desc"
        )
        if rows:
            found = True
            detail = "; ".join(f"{count} of {of} ({code})" for of, code, count in rows[:5])
            mend = f"`headrace outbox list` says why; mend it, then `headrace outbox redrive {kind} --all`, or drop them"
            yield Finding("dead letters", Level.FAIL, detail, mend)
    if not found:
        yield Finding("dead letters", Level.OK, "none")


def queues(installation: Installation) -> Iterator[Finding]:
    """Messages that wait too many, and those that were given up."""
    if not installation.run.locked():
        return
    names = [name for family in QUEUES.values() for name in family.names()]
    depths = asyncio.run(_depths(installation, [*names, *map(dead_letters_of, names)]))
    if missing := [name for name in names if name not in depths]:
        mend = "restart with `headrace up`, which declares them"
        yield Finding("queues", Level.FAIL, f"not there: {', '.join(missing)}", mend)
        return
    healthy = True
    for name in names:
        if (waiting := depths[name].ready) > BACKLOG:
            healthy = False
            mend = "its consumers do not keep up: `headrace status`, then the log of the service that consumes it"
            yield Finding("queues", Level.FAIL, f"{waiting} messages wait in {name}", mend)
        if (given_up := depths.get(dead_letters_of(name))) and given_up.ready:
            healthy = False
            mend = f"`headrace dead-letters list {name}` says why; then redrive or drop them"
            yield Finding("queues", Level.WARN, f"{given_up.ready} dead letters of {name}", mend)
    if healthy:
        waiting = sum(depths[name].ready for name in names)
        yield Finding("queues", Level.OK, f"{len(names)} queues, {waiting} messages wait, no dead letters")


async def _depths(installation: Installation, names: Collection[str]) -> dict[str, Depth]:
    settings = settings_of(installation, QueueSettings), settings_of(installation, DatabaseSettings)
    async with open_queue(*settings, patience=2) as queue:
        return await queue.depths(names)
