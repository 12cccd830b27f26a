"""Purging `usage.records`: what has landed leaves the event log, once it is proven that the lake has it.

A record is deleted only if the objects that hold it were read back and are what was recorded of them
(SHA-256, rows), if their slices rolled up again from those bytes alone give what is billed (`proof`), if they
have been published for longer than the safety lag, and if no hold covers it. The intent with its
evidence is a row of `usage_purge` before anything is deleted, the log's answer after it; every step may
be repeated. The consumer of record keeps its place in the lake, so a log that comes back with older
records (a broker that lost the purge) changes nothing: they are purged again.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from assets.slices.progress import landed_offsets
from assets.usage import schema
from assets.usage.objects import ObjectProblemError, Recorded, recorded
from assets.usage.proof import Proof, prove, whole_blocks
from core import crash
from core.crash import Point
from core.database.urls import libpq_dsn
from core.eventlog import open_eventlog
from core.eventlog.api import Bounds, TopicChangedError
from core.holds import LOCK, Hold
from core.lake import Lake
from core.lake.objects import flush
from core.settings import DatabaseSettings, EventLogSettings


class BeyondEvidenceError(ValueError):
    """Offsets that no evidence covers were about to be deleted. Always a mistake of the code."""


class PurgeRefusedError(Exception):
    """Something that should hold does not; nothing was deleted of the partitions it names."""


@dataclass(frozen=True, slots=True)
class Permit:
    """All offsets of a partition below `before` may go. Cannot be made beyond its evidence.

    `low` and `high` are the log's bounds, `proven` the end of what was proven of this partition.
    """

    topic_id: str
    partition: int
    low: int
    before: int
    proven: int
    high: int

    def __post_init__(self) -> None:
        numbers = (self.low, self.before, self.proven, self.high)
        if any(type(number) is not int for number in numbers):
            raise BeyondEvidenceError(f"{self}: offsets are integers")
        if not 0 <= self.low < self.before <= min(self.proven, self.high):
            raise BeyondEvidenceError(f"{self}: 0 <= low < before <= proven and high does not hold")


@dataclass(slots=True)
class Plan:
    """What may go, what may not and why. Partitions in neither have nothing that is due."""

    permits: list[Permit] = field(default_factory=list)
    proof: Proof | None = None
    held: dict[int, list[str]] = field(default_factory=dict)
    """Partition to the names of the holds on it."""
    refused: dict[int, list[str]] = field(default_factory=dict)
    """Partition to what does not hold."""

    def hold(self, holds: Iterable[Hold]) -> None:
        """Take back the permits that holds cover."""
        for hold in holds:
            for permit in self.permits:
                if hold.covers(permit.partition):
                    self.held.setdefault(permit.partition, []).append(hold.name)
        self.permits = [permit for permit in self.permits if permit.partition not in self.held]

    def why(self) -> str:
        """What was refused, a line for each reason with its partitions."""
        reasons: dict[str, list[int]] = {}
        for partition, texts in sorted(self.refused.items()):
            for text in texts:
                reasons.setdefault(text, []).append(partition)
        return "\n".join(
            f"partition {', '.join(map(str, partitions))} is not purged: {text}"
            for text, partitions in reasons.items()
        )


@dataclass(frozen=True, slots=True)
class Purged:
    """What one run did: the plan, and the low watermark of each partition that was purged."""

    plan: Plan
    lows: Mapping[int, int]
    left: int
    """Records that are still in the log."""
    unaccounted: int = 0
    """Records that it deleted and the lake does not hold."""


@dataclass(frozen=True, slots=True)
class _Published:
    slice: int
    offsets: Mapping[int, int]
    """Next offset of each partition."""


def plan(
    lake: Lake, eventlog: EventLogSettings, database: DatabaseSettings, *, lag: timedelta, most: int
) -> Plan:
    """Prove what is due. Deletes nothing; reads every object that it rests on.

    Args:
        lag: how long something must have been published.
        most: about so many records at once.
    """
    topic_id, bounds = asyncio.run(_look(eventlog, database))
    found = Plan()
    for hold in holds(database):
        for partition in filter(hold.covers, bounds):
            found.held.setdefault(partition, []).append(hold.name)
    due = _due(database, lake.generation, topic_id, lag)
    free = bounds.keys() - found.held.keys()
    target = _choose(due, bounds, most, free)
    if target is None:
        return found
    known, broken = recorded(lake, database), list[ObjectProblemError]()
    while target is not None:
        first = _first_slice(known, topic_id, bounds, target)
        found.proof = prove(lake, known, first, target.slice)
        if not found.proof.broken:
            break
        # What lies before the first broken object, in whole blocks, can still be proven without it.
        broken += found.proof.broken
        before = min(one.recorded.first_slice for one in broken)
        before, _ = whole_blocks(lake, before, before)
        target = _choose([each for each in due if each.slice < before], bounds, most, free)
    for one in broken:
        for partition in {part.partition for part in one.recorded.ranges}:
            found.refused.setdefault(partition, []).append(str(one))
    if target is not None and found.proof is not None:
        _permit(found, found.proof, topic_id, bounds, target)
    return found


def purge(
    lake: Lake, eventlog: EventLogSettings, database: DatabaseSettings, *, lag: timedelta, most: int
) -> Purged:
    """Delete from the log what is proven. Safe to repeat, whatever died when.

    Raises:
        TopicChangedError: the topic was made anew meanwhile; nothing was deleted.
    """
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # A purge whose process died after it: the log says that it is done.
            topic_id, bounds = asyncio.run(_look(eventlog, database))
            _close(cursor, topic_id, {partition: bound.low for partition, bound in bounds.items()})
            decided = plan(lake, eventlog, database, lag=lag, most=most)
            left = sum(bound.high - bound.low for bound in bounds.values())
            if decided.proof is None or not decided.permits:
                return Purged(decided, {}, left)
            flush(lake, schema.EVENTS, [each.path for each in decided.proof.objects])
            cursor.execute("select pg_advisory_lock(%s)", (LOCK,))
            decided.hold(holds(database))
            if not decided.permits:
                return Purged(decided, {}, left)
            _intend(cursor, lake, decided.permits, decided.proof)
            crash.here(Point.PURGE_INTENDED)
            lows = asyncio.run(_delete(eventlog, database, decided.permits))
            crash.here(Point.PURGED)
            _close(cursor, topic_id, lows)
            left -= sum(low - bounds[partition].low for partition, low in lows.items())
            landed = landed_offsets(lake.open(schema.EVENTS), topic_id, len(bounds))
            beyond = sum(max(0, low - landed[partition]) for partition, low in lows.items())
            return Purged(decided, lows, left, beyond)
    finally:
        connection.close()


def holds(database: DatabaseSettings) -> list[Hold]:
    """The holds that stand."""
    rows = _ask(database, "select name, partition from usage_hold where lifted_at is null order by placed_at")
    return [Hold(*row) for row in rows]


def is_due(lake: Lake, eventlog: EventLogSettings, database: DatabaseSettings, *, lag: timedelta) -> bool:
    """True where something could be purged. A look at the log and one at PostgreSQL, nothing is read back."""
    topic_id, bounds = asyncio.run(_look(eventlog, database))
    held = holds(database)
    free = {partition for partition in bounds if not any(hold.covers(partition) for hold in held)}
    return _choose(_due(database, lake.generation, topic_id, lag), bounds, 1, free) is not None


async def _look(eventlog: EventLogSettings, database: DatabaseSettings) -> tuple[str, dict[int, Bounds]]:
    async with open_eventlog(eventlog, database) as log:
        return (await log.topic(schema.TOPIC)).id, await log.bounds(schema.TOPIC)


def _due(database: DatabaseSettings, generation: int, topic_id: str, lag: timedelta) -> list[_Published]:
    """Publications older than the lag, oldest first. The newest one's slice may be asked for in several."""
    rows = _ask(
        database,
        "select slice, offsets -> %s from usage_publication "
        "where generation = %s and published_at <= now() - %s and offsets ? %s order by slice",
        (topic_id, generation, lag, topic_id),
    )
    return [_Published(number, {int(p): end for p, end in offsets.items()}) for number, offsets in rows]


def _choose(
    due: Sequence[_Published], bounds: Mapping[int, Bounds], most: int, wanted: Set[int]
) -> _Published | None:
    """The last publication that lets about `most` records of the wanted partitions go; None for none at all."""
    chosen = None
    for each in due:
        records = sum(max(0, each.offsets.get(p, 0) - bounds[p].low) for p in wanted)
        if records and (chosen is None or records <= most):
            chosen = each
    return chosen


def _first_slice(
    known: Sequence[Recorded], topic_id: str, bounds: Mapping[int, Bounds], target: _Published
) -> int:
    """First slice of the objects that hold what is to go."""
    touched = [
        each.first_slice
        for each in known
        for part in each.ranges
        if part.topic_id == topic_id
        and part.first < target.offsets.get(part.partition, 0)
        and part.end > bounds[part.partition].low
    ]
    return min(touched, default=target.slice)


def _permit(
    found: Plan, proof: Proof, topic_id: str, bounds: Mapping[int, Bounds], target: _Published
) -> None:
    """Permits where the evidence covers all that is to go, else why not."""
    for partition, bound in bounds.items():
        before = target.offsets.get(partition, 0)
        if before <= bound.low or partition in found.held or partition in found.refused:
            continue
        first, end = proof.ranges.get((topic_id, partition), (0, 0))
        problems = list(proof.problems)
        if not problems and not (first <= bound.low and before <= end):
            problems.append(
                f"topic id {topic_id}, partition {partition}: offsets {bound.low} to {before - 1} are published, the "
                f"lake holds {first} to {end - 1}"
            )
        if not problems and before > bound.high:
            problems.append(
                f"topic id {topic_id}, partition {partition}: published up to offset {before}, the log ends at "
                f"{bound.high}: it was put back to an earlier time"
            )
        if problems:
            found.refused[partition] = problems
        else:
            found.permits.append(Permit(topic_id, partition, bound.low, before, end, bound.high))


def _intend(cursor: Any, lake: Lake, permits: Sequence[Permit], proof: Proof) -> None:
    """Write down what is about to be deleted and why it may be, of all partitions at once."""

    def evidence(partition: int) -> str:
        objects = [
            {"path": each.path, "sha256": each.sha256, "bytes": each.bytes, "records": each.records}
            for each in proof.objects
            if each.covers(partition)
        ]
        return json.dumps(
            {
                "generation": lake.generation,
                "slices": [proof.first, proof.last],
                "rollup_sha256": proof.rollup,
                "objects": objects,
            }
        )

    execute_values(
        cursor,
        "insert into usage_purge (topic_id, partition, low_before, before_offset, proven_offset, high, evidence) "
        "values %s",
        [
            (p.topic_id, p.partition, p.low, p.before, p.proven, p.high, evidence(p.partition))
            for p in permits
        ],
        page_size=max(1, len(permits)),
    )


async def _delete(
    eventlog: EventLogSettings, database: DatabaseSettings, permits: Sequence[Permit]
) -> dict[int, int]:
    """The one place that deletes records of usage."""
    async with open_eventlog(eventlog, database) as log:
        found = await log.topic(schema.TOPIC)
        for permit in permits:
            if permit.topic_id != found.id:
                raise TopicChangedError(
                    f"topic {schema.TOPIC} has id {found.id}, the evidence is of {permit.topic_id}: nothing was purged"
                )
        return await log.purge(schema.TOPIC, {permit.partition: permit.before for permit in permits})


def _close(cursor: Any, topic_id: str, lows: Mapping[int, int]) -> None:
    """Write the log's answer beside every intent that it fulfils."""
    for partition, low in lows.items():
        cursor.execute(
            "update usage_purge set low_after = %s, done_at = now() "
            "where topic_id = %s and partition = %s and done_at is null and before_offset <= %s",
            (low, topic_id, partition, low),
        )


def _ask(
    database: DatabaseSettings, query: str, values: tuple[Any, ...] | None = None
) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())
    finally:
        connection.close()
