"""Crash points that no line of the code can stand for, on real servers: 9, 15 and 16 (checks 2 and 6); and 17."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pytest

from assets.usage import schema
from assets.usage.progress import landed_slice, published_slice
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from core.crash import Point
from core.database import Database
from core.eventlog import open_eventlog
from core.eventlog.api import Bounds
from core.invoices.archive import Archive, Readopted
from core.objects import open_objects
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from deploy.component import Component
from deploy.drill.stream import stream
from deploy.drill.usage import (
    Contents,
    Stand,
    adjust_and_die,
    close_at_random,
    contents,
    just_over,
)
from deploy.provision import Programs
from deploy.servers.kafka import kafka as kafka_server
from deploy.servers.minio import minio as minio_server
from deploy.servers.minio import new_kms_key
from deploy.servers.postgres import postgres as postgres_server
from tests import servers
from tests.servers import database_settings, free_port

SECONDS = 300.0
"""A broker may take to start on a busy machine."""


class Killable:
    """A server of a test's own."""

    def __init__(self, component: Component, log: Path) -> None:
        self._component, self._log = component, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = servers.start(self._component, self._log, seconds=SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            servers.kill(self._process)
            self._process = None

    def stop(self) -> None:
        """Shut down in order."""
        if self._process is not None:
            servers.stop(self._component, self._process)
            self._process = None

    @contextmanager
    def running(self) -> Iterator["Killable"]:
        self.start()
        try:
            yield self
        finally:
            self.stop()


def bounds(stand: Stand) -> dict[int, Bounds]:
    async def look() -> dict[int, Bounds]:
        async with open_eventlog(stand.eventlog, stand.database) as log:
            return await log.bounds(schema.TOPIC)

    return asyncio.run(look())


def lows(stand: Stand) -> dict[int, int]:
    return {partition: bound.low for partition, bound in bounds(stand).items()}


def published(found: Contents) -> tuple[str, ...]:
    return found.cells, found.fates, found.snapshot, found.invoices


def documents(stand: Stand) -> list[tuple[str, int, bytes]]:
    rows = stand.sql("select tenant_id, number, document from invoice order by tenant_id, number")
    return [(tenant, number, bytes(document)) for tenant, number, document in rows]


def dies(stand: Stand, at: Point) -> None:
    with stand.worker(crash=at) as process:
        assert process.wait(stand.patience) == -signal.SIGKILL


def tamper(stand: Stand, change: str, after: int, last: int) -> None:
    handle = stand.lake().open(schema.HOURLY)
    assert handle is not None
    handle.update(
        updates={"counted": change}, predicate=f"kind = 'fate' and slice > {after} and slice <= {last}"
    )


@pytest.mark.timeout(1200)
def test_2_point_9_what_does_not_add_up_is_never_published(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, tmp_path: Path
) -> None:
    """Conservation fails between landing and publication: the run stops and names where, cells, fates, snapshot,
    invoices and the log stay as they were, also for what comes later; once it holds again, everything goes on."""
    objects = ObjectSettings(objects_url=(tmp_path / "objects").as_uri())
    stand = Stand(postgres, eventlog_settings, objects, tmp_path)
    stand.reset()
    first, second, third = stream(1, 200), stream(2, 100, first=200), stream(3, 60, first=300)
    stand.send(first)
    stand.calm()
    before, low, good = contents(stand), lows(stand), published_slice(stand.database)
    stand.send(second)
    dies(stand, Point.ROLLED_UP)
    bad = landed_slice(stand.lake())
    tamper(stand, "counted + 1", good, bad)
    for more in ([], third):
        if more:
            stand.send(more)
        with stand.worker() as process:
            assert process.wait(stand.patience) == 1
        assert published(contents(stand)) == published(before)
        assert (lows(stand), published_slice(stand.database)) == (low, good)
    said = (tmp_path / "workers.log").read_text()
    assert "GateError" not in said, "said in words, not as a traceback"
    assert "landed, " in said
    assert "have a fate" in said
    assert landed_slice(stand.lake()) > bad, "records are safe in the lake meanwhile"
    tamper(stand, "counted - 1", good, bad)
    with stand.worker() as process:
        code = process.wait(stand.patience)
    everything = len(first) + len(second) + len(third)
    landed = stand.sql(
        "select sum(landed)::int, sum(counted + duplicates + quarantined + rejected)::int from usage_conservation"
    )
    assert (code, landed) == (0, [(everything, everything)])
    stand.reset()


@pytest.mark.timeout(1200)
def test_2_point_17_billers_that_die_issue_every_document_once(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings, tmp_path: Path
) -> None:
    """Killed while they close a period, and right after an adjustment was posted; two at once do the rest."""
    stand = Stand(
        postgres, eventlog_settings, ObjectSettings(objects_url=(tmp_path / "objects").as_uri()), tmp_path
    )
    stand.reset()
    period = just_over()
    stand.send(stream(1, 200))
    stand.calm()
    close_at_random(stand, period, seed=1, say=print)
    closed = documents(stand)
    assert [number for _, number, _ in closed] == [1, 1, 1]
    stand.send(stream(2, 100, first=200))
    stand.calm()
    assert adjust_and_die(stand, period, say=print) == 1
    found = documents(stand)
    assert [(tenant, number) for tenant, number, _ in found] == [
        (tenant, number) for tenant, _, _ in closed for number in (1, 2)
    ]
    assert [one for one in found if one[1] == 1] == closed
    stand.reset()


@pytest.fixture(scope="module")
def forgetful_kafka(
    stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Killable, EventLogSettings]]:
    """A broker that writes down where its log begins once a minute, as one does out of the box."""
    folder, port = tmp_path_factory.mktemp("forgetful-kafka"), free_port()
    component = kafka_server(
        folder, port, free_port(), java=stack_programs.java, jars=stack_programs.kafka_jars
    )
    often, seldom = (f"log.flush.start.offset.checkpoint.interval.ms={ms}" for ms in (1_000, 3_600_000))

    def prepare() -> None:
        component.prepare()
        settings = folder / "kafka" / "server.properties"
        said = settings.read_text()
        assert often in said
        settings.write_text(said.replace(often, seldom))

    with Killable(replace(component, prepare=prepare), folder / "log").running() as server:
        yield server, EventLogSettings(eventlog_url=f"kafka://127.0.0.1:{port}")


@pytest.fixture
def own_minio(stack_programs: Programs, tmp_path: Path) -> Iterator[ObjectSettings]:
    port, user, password = free_port(), token_hex(8), token_hex(16)
    component = minio_server(
        tmp_path / "minio",
        port,
        root_user=user,
        root_password=password,
        kms_key=new_kms_key(),
        server=stack_programs.minio,
    )
    with Killable(component, tmp_path / "minio.log").running():
        yield ObjectSettings(
            objects_url=f"s3://127.0.0.1:{port}", objects_access_key=user, objects_secret_key=password
        )


@pytest.mark.timeout(1800)
def test_2_point_15_a_purge_that_the_broker_forgets_is_done_again(
    postgres: DatabaseSettings, forgetful_kafka: tuple[Killable, EventLogSettings], tmp_path: Path
) -> None:
    """The worker dies before it has written down the log's answer and the broker with it: what was purged is there
    again, below where landing stands. Nothing lands twice, and the intents that stand open are fulfilled."""
    server, eventlog = forgetful_kafka
    stand = Stand(postgres, eventlog, ObjectSettings(objects_url=(tmp_path / "objects").as_uri()), tmp_path)
    stand.reset()
    sent = stream(1, 200)
    stand.send(sent)
    stand.calm()
    more = stream(2, 100, first=200)
    stand.send(more)
    dies(stand, Point.PURGED)
    server.kill()
    intended = dict(stand.sql("select partition, max(before_offset) from usage_purge group by partition"))
    assert stand.sql("select count(*) > 0 from usage_purge where done_at is null") == [(True,)]
    server.start()
    back = lows(stand)
    assert any(back[partition] < before for partition, before in intended.items()), (back, intended)
    stand.calm()
    settled, again = contents(stand), lows(stand)
    assert all(again[partition] >= before for partition, before in intended.items()), (again, intended)
    assert stand.sql("select count(*) from usage_purge where done_at is null") == [(0,)]
    rows = stand.sql("select sum(landed)::int from usage_conservation")
    assert rows == [(len(sent) + len(more),)]
    stand.calm()
    assert contents(stand) == settled
    stand.reset()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[tuple[Killable, DatabaseSettings, Path]]:
    """A server of this test, and the folder of its cluster."""
    folder, port, password = tmp_path / "database", free_port(), token_hex(16)
    with Killable(postgres_server(folder, port, password), tmp_path / "postgres.log").running() as server:
        yield server, database_settings(port, password), folder / "postgres"


async def readopt(stand: Stand) -> Readopted:
    system = Database(stand.database, role="system")
    try:
        async with open_objects(stand.objects, stand.database) as objects:
            return await Archive(objects, system).readopt()
    finally:
        await system.close()


@pytest.mark.timeout(1800)
def test_6_point_16_a_database_put_back_before_a_purge_gives_the_same_totals(
    own_postgres: tuple[Killable, DatabaseSettings, Path],
    forgetful_kafka: tuple[Killable, EventLogSettings],
    own_minio: ObjectSettings,
    tmp_path: Path,
) -> None:
    """PostgreSQL is restored from a copy of its cluster. Since then usage has landed, was purged from Kafka and
    adjusted an invoice. Cells come again from the lake alone, documents from their archive, nothing is doubled."""
    server, database, cluster = own_postgres
    stand, period = Stand(database, forgetful_kafka[1], own_minio, tmp_path), just_over()
    stand.reset()
    sent = stream(1, 300)
    stand.send(sent)
    stand.calm()
    stand.bill(period)
    early, issued = contents(stand), documents(stand)
    server.stop()
    shutil.copytree(cluster, tmp_path / "copy", symlinks=True)
    server.start()
    late = stream(2, 200, first=300)
    stand.send(late)
    stand.calm()
    stand.bill(period)
    after, archived, purged = contents(stand), documents(stand), lows(stand)
    assert after.invoices != early.invoices
    server.stop()
    shutil.rmtree(cluster)
    shutil.copytree(tmp_path / "copy", cluster, symlinks=True)
    server.start()
    assert published(contents(stand))[:2] == published(early)[:2]
    assert documents(stand) == issued, "what was issued before the copy is byte for byte there"
    assert all(bound.low == bound.high for bound in bounds(stand).values()), "Kafka has nothing left of it"

    # No invoice while the archive knows more than the database: a number is never given out twice.
    with stand.biller(period) as process:
        assert process.wait(stand.patience) == 1
    assert "headrace invoices readopt" in (tmp_path / "workers.log").read_text()
    assert documents(stand) == issued

    # Without the log: what landed is in the lake.
    lake = stand.lake()
    roll_up(lake)
    daily(lake)
    publish(lake, database)
    found = asyncio.run(readopt(stand))
    assert (len(found.adopted), found.conflicts) == (len(archived) - len(issued), ())
    assert documents(stand) == archived
    again = contents(stand)
    assert (again.facts, again.cells, again.fates, again.invoices) == (
        after.facts,
        after.cells,
        after.fates,
        after.invoices,
    )

    # And on it goes: the same records once more and new ones, two billers with nothing to adjust.
    stand.calm()
    stand.bill(period)
    assert (contents(stand), documents(stand), lows(stand)) == (after, archived, purged)
    stand.send([*late, *stream(3, 50, first=500)])
    stand.calm()
    fates = stand.sql("select sum(landed)::int, sum(duplicates)::int >= 0 from usage_conservation")
    assert fates[0][0] == len(sent) + 2 * len(late) + len(stream(3, 50, first=500))
