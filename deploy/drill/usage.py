"""The drill of the usage path: workers die at every named point and at random ones, two at a time.

The same records go through a calm installation and through a storm. Facts with their fates, published cells,
conservation, the snapshot and the draft charges in it, and issued invoices with their adjustments must have the
same content hash in both.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
import psycopg2
from pydantic import SecretStr
from sqlalchemy import text

from assets.usage import schema
from assets.usage.generation import usage_lake
from assets.usage.progress import landed_slice
from core.content import digest
from core.crash import VARIABLE, Point
from core.database import Database, dsn
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord, UnknownTopicError
from core.invoices.archive import BUCKET as INVOICES
from core.lake import Lake
from core.lake.objects import named
from core.objects import open_objects
from core.prices import DEFAULT_FILE, read_file, record
from core.rating import ServicePeriod
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings, Settings
from core.snapshots import BUCKET, fetch_latest
from core.topology import TOPICS
from deploy.drill import content
from deploy.drill.platform import DrillError
from deploy.drill.servers import servers
from deploy.drill.stream import ORGANISATIONS, stream
from deploy.drill.usage_kill import Say

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = (
    "usage_cell", "usage_element", "usage_conservation", "usage_watermark", "usage_publication", "usage_quarantine", "usage_object",
    "usage_purge", "usage_gate",
)  # fmt: skip
MOST = 120
"""Records of a slice, so that a portion is several."""
PATIENCE = 600.0
PORTION = 160
BILLERS = 4
"""So many die while they close the period."""
TRIES = 20
"""So often a worker is sent to a point that it may miss: a commit takes about a millisecond, and on a busy machine
the thread that watches for its file may not get a turn in it (five tries were once too few)."""

LANDS: Mapping[Point, bool | None] = {
    Point.BEFORE_READING: False,
    Point.READING: False,
    Point.WRITING_FILES: False,
    Point.FILES_WRITTEN: False,
    Point.COMMIT_SENT: True,
    Point.LANDED: True,
    Point.INDEXING: None,
    Point.ROLLED_UP: True,
    Point.PUBLISHING: True,
    Point.PUBLISHED: True,
    Point.SNAPSHOT_WRITTEN: True,
    Point.PURGE_INTENDED: True,
    Point.PURGED: True,
}
"""The points of the usage path, and whether the slice has landed by then. An index may also be behind, and then
it is brought forward before its process lands anything: None."""


@dataclass(frozen=True)
class Stand:
    """What workers work on. `folder` holds what they write and say."""

    database: DatabaseSettings
    eventlog: EventLogSettings
    objects: ObjectSettings
    folder: Path
    partitions: int = TOPICS[schema.TOPIC].partitions
    most: int = MOST
    patience: float = PATIENCE
    """Seconds that a worker may take for all that is owed."""

    def lake(self) -> Lake:
        return usage_lake(self.objects, self.database)

    def reset(self) -> None:
        """An empty topic, nothing published, buckets, and the price book."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(self._reset())
        self.sql(f"truncate {', '.join(PUBLISHED)}", role="owner")
        self.sql(f"delete from object_version where bucket in ('{BUCKET}', '{INVOICES}')")
        # Nobody can take back what was issued, so the guard is taken off: calm and storm share a database.
        self.sql(
            "alter table invoice disable trigger issued_never_truncated; "
            "truncate invoice, invoice_copy, invoice_sequence; "
            "alter table invoice enable trigger issued_never_truncated",
            role="owner",
        )

    async def _reset(self) -> None:
        async with open_objects(self.objects, self.database) as objects:
            for bucket in ("lake", BUCKET):
                await objects.ensure_bucket(bucket, versioned=False)
        async with open_eventlog(self.eventlog, self.database) as log:
            with suppress(UnknownTopicError):
                await log.delete_topic(schema.TOPIC)
            await log.ensure_topics([replace(TOPICS[schema.TOPIC], partitions=self.partitions)])
        system = Database(self.database, role="system")
        try:
            async with system.writer() as connection:
                await record(connection, read_file(DEFAULT_FILE))
                for tenant_id in ORGANISATIONS:
                    await connection.execute(
                        text(
                            "insert into organisation (id, slug, name, plan) values (:id, :slug, 'Drill', 'free') "
                            "on conflict do nothing"
                        ),
                        {"id": tenant_id, "slug": tenant_id.replace("_", "-")},
                    )
        finally:
            await system.close()

    def send(self, records: Sequence[NewRecord]) -> None:
        async def work() -> None:
            async with open_eventlog(self.eventlog, self.database) as log:
                await log.append(records)

        asyncio.run(work())

    def worker(
        self, *, crash: str = "", machine: int = 1, compacts: bool = False
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """A worker that has begun; it is killed at the end where it still works.

        Args:
            machine: each has its own identity index.
            compacts: it also puts small files together, now and then.
        """
        command = ["deploy.drill.worker", str(self.most), *(["compacts"] if compacts else [])]
        return self._process(command, crash, machine)

    def biller(
        self, period: ServicePeriod, *, crash: str = ""
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """One that closes and adjusts a period of all organisations, as `worker`."""
        edges = (period.start.isoformat(), period.end.isoformat())
        return self._process(["deploy.drill.biller", *edges, *ORGANISATIONS], crash, 1)

    def bill(self, period: ServicePeriod) -> None:
        """Two at once close and adjust a period."""
        with self.biller(period) as one, self.biller(period) as other:
            self.finish(one)
            self.finish(other)

    @contextmanager
    def _process(self, command: list[str], crash: str, machine: int) -> Iterator[subprocess.Popen[str]]:
        log = self.folder / "workers.log"
        environment = {
            **variables(self.database, self.eventlog, self.objects),
            "HEADRACE_STATE_DIR": str(self.folder / f"machine-{machine}"),
            "PATH": os.environ.get("PATH", ""),
            **({VARIABLE: crash} if crash else {}),
        }
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise DrillError(f"a worker did not begin: {tail(log)}")
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Raises: DrillError where the worker does not end well."""
        if process.wait(self.patience) != 0:
            raise DrillError(f"a worker ended with {process.returncode}: {tail(self.folder / 'workers.log')}")

    def calm(self) -> None:
        """Let one worker finish whatever is owed."""
        with self.worker() as process:
            self.finish(process)

    def together(self, *, compacts: bool = False) -> None:
        """The same by two at once, each with an index of its own."""
        with self.worker(compacts=compacts) as one, self.worker(machine=2, compacts=compacts) as other:
            self.finish(one)
            self.finish(other)

    def orphans(self) -> int:
        """Files of `usage_events` that its log does not name."""
        handle = self.lake().open(schema.EVENTS)
        files = {path.name for path in Path(self.lake().uri(schema.EVENTS)).glob("*.parquet")}
        return len(files - (named(handle).keys() if handle is not None else set()))

    def sql(self, statement: str, *, role: Literal["owner", "system"] = "system") -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(dsn(self.database, role))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Contents:
    """Content hashes: of all rows with their fates, of published cells and elements, of fates by tenant and partition
    and what is quarantined, of the newest snapshot with its charges, of issued invoices and their adjustments."""

    facts: str
    cells: str
    fates: str
    snapshot: str
    invoices: str


def contents(stand: Stand) -> Contents:
    """What stands there now, without what differs from one run to the next: slices, versions, times."""
    columns = ("partition", "offset", "tenant", *content.FACTS, "fate", "code")
    handle = stand.lake().open(schema.EVENTS)
    rows = [] if handle is None else pl.DataFrame(handle.to_pyarrow_table()).select(columns).rows()
    path = asyncio.run(fetch_latest(stand.objects, stand.database, stand.folder / "snapshots"))
    return Contents(
        digest(rows),
        digest(
            stand.sql(
                "select tenant_id, grain, meter, period_start at time zone 'UTC', dimensions_key, '', quantity, events from usage_cell "
                "union all select tenant_id, 'element', meter, period_start at time zone 'UTC', dimensions_key, element, quantity, "
                "events from usage_element"
            )
        ),
        digest(
            stand.sql(
                "select tenant_id, partition, sum(landed), sum(counted), sum(duplicates), sum(quarantined), sum(rejected) "
                "from usage_conservation group by 1, 2 union all "
                "select '', partition, next_offset, 0, 0, 0, 0 from usage_watermark"
            )
            + stand.sql("select tenant_id, fate, code, kind, partition, log_offset from usage_quarantine")
        ),
        content.snapshot(path, None),
        content.issued(
            (tenant_id, bytes(document))
            for tenant_id, document in stand.sql(
                "select tenant_id, document from invoice order by tenant_id, number"
            )
        ),
    )


def at_points(stand: Stand, portions: Iterator[Sequence[NewRecord]], say: Say) -> list[dict[str, Any]]:
    """A worker dies at each point with new records on the way; then two at once finish.

    Raises:
        DrillError: a point was not reached, or a slice had landed where it must not.
    """
    done = []
    for point, lands in LANDS.items():
        stand.send(next(portions))
        for attempt in range(1, TRIES + 1):
            before, orphans = landed_slice(stand.lake()), _orphans(stand)
            with stand.worker(crash=point) as process:
                code = process.wait(PATIENCE)
            if code != -signal.SIGKILL and not (point == Point.FILES_WRITTEN and code == 0):
                raise DrillError(f"{point}: the worker ended with {code} instead of dying there")
            landed = landed_slice(stand.lake()) > before
            left = _orphans(stand) - orphans
            if lands in (landed, None) and left == (point == Point.FILES_WRITTEN and stand.lake().local):
                break
            if point != Point.FILES_WRITTEN or attempt == TRIES:
                raise DrillError(f"{point}: the slice {'has' if landed else 'has not'} landed")
            stand.send(next(portions))
        stand.together()
        done.append({"point": str(point), "attempts": attempt, "slices": landed_slice(stand.lake())})
        say(f"killed at {point}; two runners finished at slice {done[-1]['slices']}")
    return done


def _orphans(stand: Stand) -> int:
    """Files that a dead writer left. On an object store its upload was not finished, so there is none."""
    return stand.orphans() if stand.lake().local else 0


def at_random(stand: Stand, portions: Iterator[Sequence[NewRecord]], kills: int, seed: int, say: Say) -> int:
    """`kills` workers die at moments that `seed` decides, always one of two that work at once."""
    pick, killed = random.Random(seed), 0  # noqa: S311 - repeatable
    while killed < kills:
        stand.send(next(portions))
        with (
            stand.worker(machine=1, compacts=True) as one,
            stand.worker(machine=pick.choice((1, 2)), compacts=True) as other,
        ):
            for process in (one, other):
                try:
                    process.wait(pick.uniform(0, 0.8))
                except subprocess.TimeoutExpired:
                    process.kill()
                    killed += 1
        if killed % 10 < 2:
            say(f"{killed} of {kills} killed at random moments")
    stand.together(compacts=True)
    return killed


def just_over() -> ServicePeriod:
    """The three days before the hour that runs: whatever `stream` makes falls into it, or comes late into it."""
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return ServicePeriod(end - timedelta(days=3), end)


def close_at_random(stand: Stand, period: ServicePeriod, seed: int, say: Say) -> int:
    """Billers die while they close a period, then two at once close it; returns how many died."""
    pick, killed = random.Random(seed), 0  # noqa: S311 - repeatable
    for number in range(BILLERS):
        with stand.biller(period) as one:
            try:
                # The first dies for certain: where it gets through, the others find nothing to do.
                one.wait(pick.uniform(0, 0.5) if number else 0.02)
            except subprocess.TimeoutExpired:
                one.kill()
                killed += 1
    stand.bill(period)
    say(f"killed {killed} billers; two at once closed the period")
    return killed


def adjust_and_die(stand: Stand, period: ServicePeriod, say: Say) -> int:
    """A biller dies right after it has posted an adjustment; two at once find what is left. Returns 1.

    Raises:
        DrillError: it did not die there: there was nothing to adjust.
    """
    with stand.biller(period, crash=Point.ADJUSTING) as one:
        code = one.wait(PATIENCE)
    if code != -signal.SIGKILL:
        raise DrillError(f"{Point.ADJUSTING}: the biller ended with {code} instead of dying there")
    stand.bill(period)
    stand.bill(period)
    say(f"killed at {Point.ADJUSTING}; two billers at once posted the rest")
    return 1


def carry_out(calm: Stand, storm: Stand, kills: int, seed: int, say: Say) -> dict[str, Any]:
    """The storm, then the same records in a calm; both stands may share their servers, one after the other.

    Raises:
        DrillError: see `at_points`; or a worker did not end well.
    """
    sent: list[NewRecord] = []

    def portions() -> Iterator[Sequence[NewRecord]]:
        number = 0
        while True:
            # Copies of earlier portions come again in later ones.
            fresh = stream(seed + number, PORTION, first=number * PORTION)
            again = random.Random(seed + number).choices(sent, k=10) if sent else []  # noqa: S311
            portion = [*fresh[: PORTION // 2], *again, *fresh[PORTION // 2 :]]
            sent.extend(portion)
            number += 1
            yield portion

    storm.reset()
    period, supply = just_over(), portions()
    points = at_points(storm, supply, say)
    billing = close_at_random(storm, period, seed, say)
    closed = len(sent)
    killed = at_random(storm, supply, kills, seed, say)
    billing += adjust_and_die(storm, period, say)
    found = contents(storm)
    purged = storm.sql("select count(*), count(done_at) from usage_purge")[0]
    together = storm.sql("select count(*) from usage_object where replaced_at is not null")[0][0]
    storm_invoices = dict(storm.sql("select reason, count(*) from invoice group by reason"))
    say(f"storm over: {len(points)} points, {killed} random kills, {len(sent)} records; now the calm")
    calm.reset()
    for part in (sent[:closed], sent[closed:]):
        calm.send(part)
        calm.calm()
        calm.bill(period)
    expected = contents(calm)
    return {
        "seed": seed,
        "points": points,
        "random_kills": killed,
        "billing_kills": billing,
        "invoices": storm_invoices,
        "records": len(sent),
        "purges": {"intended": purged[0], "done": purged[1]},
        "files_put_together": together,
        "calm": asdict(expected),
        "storm": asdict(found),
        "equal": expected == found,
    }


def drill(folder: Path, profile: str, port_base: int, kills: int, seed: int, say: Say) -> dict[str, Any]:
    """The drill on servers of its own below `folder`; they are ended with it.

    Raises:
        DrillError
    """
    with servers(folder / "servers", profile, port_base, say) as (database, eventlog, objects):
        calm, storm = (
            Stand(database, eventlog, apart(objects, folder, name), folder / name)
            for name in ("calm", "storm")
        )
        return {"profile": profile, **carry_out(calm, storm, kills, seed, say)}


def apart(objects: ObjectSettings, folder: Path, name: str) -> ObjectSettings:
    """A place for objects that no other has."""
    if objects.objects_url.startswith("file:"):
        return objects.model_copy(update={"objects_url": (folder / name / "objects").as_uri()})
    return objects.model_copy(update={"objects_bucket_prefix": f"{name}-"})


def variables(*settings: Settings) -> dict[str, str]:
    """Settings as the environment of a process."""
    found: Mapping[str, Any] = {name: value for each in settings for name, value in each}
    return {
        f"HEADRACE_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in found.items()
        if value is not None
    }


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
