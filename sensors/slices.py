"""The edges between topics and Dagster. What has landed is the truth, the cursor a cache."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import dagster as dg

from assets.resources import Platform
from core.eventlog.api import Slice
from sensors.runs import under_way

TOPIC_TAG = "headrace/topic"
LONGEST_PAUSE = 300.0


@dataclass(frozen=True, slots=True)
class Edge:
    """A topic with a job that lands it.

    A run costs seconds of CPU however little it carries, so what is not urgent waits until `enough`
    records are there or its first has waited `patience` seconds. `owed` names work beyond landing that
    an earlier run left unfinished, empty for none.
    """

    name: str
    topic: str
    table: str
    """Delta table and name of the asset that lands it."""
    job: str
    interval: int
    patience: float = 0.0
    enough: int = 1
    owed: Callable[[Platform], str] = lambda _: ""
    check: Callable[[Platform], None] = lambda _: None
    """Raises where nothing may land, for a person to read in the tick."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for last: the slice's name, how often, and when (seconds).

    `waiting` and `since` name the slice that waits to be asked for, and when it was first seen.
    """

    key: str = ""
    attempt: int = 0
    at: float = 0.0
    waiting: str = ""
    since: float = 0.0

    @staticmethod
    def read(cursor: str | None) -> "Asked":
        try:
            return Asked(**json.loads(cursor)) if cursor else Asked()
        except (ValueError, TypeError):
            return Asked()  # of another version: it only says what was asked for last

    def write(self) -> str:
        return json.dumps(asdict(self))


def see(asked: Asked, key: str, now: float) -> Asked:
    """Note since when this work has been waiting. It is the same while a partition waits at the same offset."""
    same = not set(asked.waiting.split(",")).isdisjoint(key.split(","))
    return replace(asked, waiting=key, since=asked.since if same else now)


def is_due(edge: Edge, records: int, waited: float) -> bool:
    """True where a run is worth its cost. Work that is owed carries no records and is always due."""
    return records == 0 or records >= edge.enough or waited >= edge.patience


def next_attempt(asked: Asked, key: str, now: float) -> Asked | None:
    """Ask for a new slice at once, for one that failed after 5, 10, 20 … 300 s; None means wait.

    A run key is remembered as long as its run, so a failed slice needs another key: the attempt.
    """
    if key != asked.key:
        return replace(asked, key=key, attempt=1, at=now)
    if now - asked.at < min(LONGEST_PAUSE, 5.0 * 2 ** (asked.attempt - 1)):
        return None
    return replace(asked, attempt=asked.attempt + 1, at=now)


def slice_name(piece: Slice | None, owed: str) -> str:
    """Names the work: the slice's first offsets, or what an earlier run left unfinished."""
    if piece is None:
        return owed
    return ",".join(f"{p}:{start}" for p, (start, _) in sorted(piece.ranges.items()))


def slices(edge: Edge) -> dg.SensorDefinition:
    """The sensor of one topic: one run at a time, for whatever has not landed."""

    @dg.sensor(
        name=edge.name,
        job_name=edge.job,
        minimum_interval_seconds=edge.interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Asks for a run for each slice of {edge.topic} that has not landed. A tick that fails names "
        "the incident: records gone before they landed, or a topic made anew.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult | dg.SkipReason:
        from assets.slices.progress import next_slice  # noqa: PLC0415

        if wait := under_way(context.instance, {TOPIC_TAG: edge.topic}):
            return wait
        edge.check(platform)
        piece = next_slice(platform.lake(), platform.eventlog, platform.database, edge.topic, edge.table)
        owed = "" if piece else edge.owed(platform)
        if piece is None and not owed:
            return dg.SkipReason("everything has landed")
        return decide(edge, piece, owed, Asked.read(context.cursor), time.time())

    return sensor


def decide(edge: Edge, piece: Slice | None, owed: str, asked: Asked, now: float) -> dg.SensorResult:
    """Ask for a run, or say why not yet. Pure."""
    name, records = slice_name(piece, owed), piece.records if piece else 0
    seen = see(asked, name, now)
    if not is_due(edge, records, now - seen.since):
        waiting = f"{records} records wait; a run starts with {edge.enough} or after {edge.patience:.0f} s"
        return dg.SensorResult(skip_reason=waiting, cursor=seen.write())
    attempt = next_attempt(seen, name, now)
    if attempt is None:
        failed = f"attempt {seen.attempt} at this slice failed; waiting before the next"
        return dg.SensorResult(skip_reason=failed, cursor=seen.write())
    topic_id = piece.topic_id if piece else ""
    ranges = {str(p): list(span) for p, span in piece.ranges.items()} if piece else {}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{edge.topic}:{topic_id}:{name}:{attempt.attempt}:{int(attempt.at)}",
                run_config={"ops": {edge.table: {"config": {"topic_id": topic_id, "ranges": ranges}}}},
                tags={"headrace/records": str(records)},
            )
        ],
        cursor=attempt.write(),
    )


def _unpublished(platform: Platform) -> str:
    from assets.usage.progress import landed_slice, published_slice  # noqa: PLC0415

    landed, published = landed_slice(platform.lake()), published_slice(platform.database)
    return "" if landed == published else f"finish:{landed}:{published}"


def _lake_holds_what_is_published(platform: Platform) -> None:
    from assets.usage.lineage import check  # noqa: PLC0415

    check(platform.lake(), platform.database)


USAGE = Edge(
    "usage_records_slices", "usage.records", "usage_events", "usage_slice", 5, owed=_unpublished,
    check=_lake_holds_what_is_published,
)  # fmt: skip
AUDIT = Edge("audit_logs_slices", "audit.logs", "audit_events", "audit_slice", 15, patience=30, enough=1000)

usage_records_slices = slices(USAGE)
audit_logs_slices = slices(AUDIT)
