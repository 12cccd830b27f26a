"""Each check turns red on what it is for, and says how to mend it."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

from core.database import dsn
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord
from core.messaging import dead_letters, queue_topology
from core.queue.api import NewMessage
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from deploy import doctor
from deploy.doctor import Finding, Level, facts, flow, machine, platform
from deploy.installation import Installation, prepare
from deploy.supervisor.run_folder import RunFolder
from tests.servers import free_port

Check = Callable[[Installation], Iterator[Finding]]
Execute = Callable[[str, str], None]


def worst(check: Check, installation: Installation) -> Finding:
    """The finding that matters."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    return max(check(installation), key=lambda finding: order.index(finding.level))


@pytest.fixture
def stopped(tmp_path: Path) -> Installation:
    return prepare(tmp_path, None, 0, {})


@pytest.fixture
def started(stopped: Installation, postgres: DatabaseSettings) -> Iterator[Installation]:
    """An installation whose launcher seems to run, on the database of the tests."""
    environment = dict(stopped.environment) | {"HEADRACE_DATABASE_URL": postgres.database_url}
    for role in ("owner", "app", "system"):
        password = getattr(postgres, f"database_{role}_password").get_secret_value()
        environment[f"HEADRACE_DATABASE_{role.upper()}_PASSWORD"] = password
    run = RunFolder(stopped.folder)
    run.lock()
    yield replace(stopped, environment=environment)
    run.unlock()


@pytest.fixture
def execute(postgres: DatabaseSettings) -> Iterator[Execute]:
    """Runs a statement as `hr_system`, and its opposite afterwards. Nothing that other tests left is waiting."""
    connection = psycopg2.connect(dsn(postgres, "system"))
    undo: list[str] = []
    with connection, connection.cursor() as cursor:
        cursor.execute("delete from outbox")
        cursor.execute("delete from outbox_dead")
        cursor.execute("delete from queue_outbox")
        cursor.execute("delete from queue_outbox_dead")

    def run(statement: str, back: str) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
        undo.append(back)

    yield run
    for statement in undo:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    connection.close()


def test_secrets_that_others_can_read(stopped: Installation) -> None:
    assert worst(platform.files, stopped).level is Level.OK
    (stopped.folder / "jwt.pem").chmod(0o640)
    found = worst(platform.files, stopped)
    assert found.level is Level.FAIL
    assert found.mend == f"chmod 600 {stopped.folder}/jwt.pem"
    (stopped.folder / "jwt.pem").unlink()
    assert "missing" in worst(platform.files, stopped).detail


def test_a_port_that_somebody_has(tmp_path: Path) -> None:
    base = free_port() - 8080
    installation = prepare(tmp_path, None, base, {}) if base >= 0 else prepare(tmp_path, None, 20_000, {})
    with socket.create_server(("127.0.0.1", installation.port("gateway"))):
        found = worst(platform.ports, installation)
    assert found.level is Level.FAIL
    assert str(installation.port("gateway")) in found.detail


def test_a_launcher_that_does_not_run(stopped: Installation, started: Installation) -> None:
    assert worst(platform.orphans, started).level is Level.OK
    RunFolder(stopped.folder).path.joinpath("lock").unlink()
    found = worst(platform.orphans, stopped)
    assert found.level is Level.WARN
    assert "headrace up" in found.mend


def test_packages_other_than_the_lock(stopped: Installation, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# comment\npsycopg2-binary==0.1 \\\n    --hash=sha256:00\nnot-installed==1.0\n")
    assert machine.pins(lock) == {"psycopg2-binary": "0.1", "not-installed": "1.0"}
    differing = machine.differences(machine.pins(lock))
    assert len(differing) == 2
    assert "instead of 0.1" in differing[0]
    assert differing[1] == "not-installed missing instead of 1.0"
    assert worst(machine.packages, stopped).level in (Level.OK, Level.WARN)


def test_machine_checks_answer(stopped: Installation) -> None:
    for check in (machine.kernel, machine.disk, machine.memory):
        assert worst(check, stopped).detail


def test_schema_of_another_version(started: Installation, postgres: DatabaseSettings) -> None:
    assert worst(platform.database, started).level is Level.OK
    connection = psycopg2.connect(dsn(postgres, "owner"))
    with connection, connection.cursor() as cursor:
        cursor.execute("select version_num from alembic_version")
        (newest,) = cursor.fetchone()
        cursor.execute("update alembic_version set version_num = '0000'")
    try:
        found = worst(platform.database, started)
    finally:
        with connection, connection.cursor() as cursor:
            cursor.execute("update alembic_version set version_num = %s", (newest,))
        connection.close()
    assert found.level is Level.FAIL
    assert "0000" in found.detail


OUTBOX = "(tenant_id, topic, key, value, enqueued_at) values ('t_doctor', 'audit.logs', '', '', now() - interval '1 h')"


def test_an_outbox_that_nobody_empties(started: Installation, execute: Execute) -> None:
    assert worst(flow.relay_lag, started).level is Level.OK
    execute(f"insert into outbox {OUTBOX}", "delete from outbox where tenant_id = 't_doctor'")
    found = worst(flow.relay_lag, started)
    assert found.level is Level.FAIL
    assert "headrace logs relay" in found.mend


def test_dead_letters(started: Installation, execute: Execute) -> None:
    assert worst(flow.dead_letters, started).level is Level.OK
    execute(
        "insert into outbox_dead (id, tenant_id, topic, key, value, enqueued_at, code, reason)"
        " values (-1, 't_doctor', 'usage.records', '', '', now(), 'too_large', 'x')",
        "delete from outbox_dead where tenant_id = 't_doctor'",
    )
    found = worst(flow.dead_letters, started)
    assert found.level is Level.FAIL
    assert "1 of usage.records (too_large)" in found.detail
    assert "`headrace outbox redrive records --all`" in found.mend


def test_usage_that_is_charged_to_nobody(started: Installation, execute: Execute) -> None:
    assert "org_mistyped" not in worst(flow.usage_owners, started).detail
    execute(
        "insert into usage_cell values ('org_mistyped', 'hour', 'tool.calls', '2026-01-01Z', '{}', '', 3, 2000000000, 1)",
        "delete from usage_cell where tenant_id = 'org_mistyped'",
    )
    found = worst(flow.usage_owners, started)
    assert (found.level, "org_mistyped (2000000000)" in found.detail) == (Level.FAIL, True)
    assert "tenant" in found.mend


def test_objects_that_are_lost_or_changed(started: Installation, execute: Execute) -> None:
    execute("delete from usage_object", "delete from usage_object")
    assert worst(facts.objects, started).level is Level.OK
    execute(
        "insert into usage_object (generation, path, bytes, records, sha256, first_slice, last_slice, ranges, tenants, problem) "
        'select 1, \'part-\' || n, 9, 3, repeat(\'0\', 64), n, n, \'[{"topic_id": "t", "partition": 2, "first": 7, "end": 10}]\', '
        "'[\"org_doctor\"]', case when n = 9 then null when n = 1 then 'changed' else 'lost' end from unnest(array[1, 2, 3, 4, 9]) n",
        "delete from usage_object",
    )
    found = worst(facts.objects, started)
    assert found.level is Level.FAIL
    assert (
        "usage_events/part-1 (topic id t, partition 2, offsets 7 to 9; slices 1 to 1; tenants org_doctor)"
        in found.detail
    )
    assert "is changed" in found.detail
    assert found.detail.endswith("; and 1 more"), "the one that is whole is none of them"
    assert "restore it from a copy" in found.mend


def test_events_that_were_sent_and_are_not_there(started: Installation, execute: Execute) -> None:
    execute("delete from usage_checkpoint", "delete from usage_checkpoint")
    assert worst(facts.senders, started).level is Level.OK
    execute(
        "insert into usage_checkpoint (tenant_id, id, producer, incarnation, first_sequence, last_sequence, hash, received, "
        "slice, slices, due, state, missing_events) "
        "values ('org_doctor', 'c', 'crm', 'life', 1, 9, '', now(), 1, '{1}', '{}', 'incomplete', 4)",
        "delete from usage_checkpoint",
    )
    found = worst(facts.senders, started)
    assert found.level is Level.WARN
    assert found.detail == "org_doctor, producer crm life: incomplete, 4 missing of 1 to 9"
    assert "`headrace usage producers`" in found.mend


async def test_records_that_are_not_published(
    started: Installation, postgres: DatabaseSettings, execute: Execute
) -> None:
    topic = replace(TOPICS["usage.records"], name="doctor.records")
    log = open_eventlog(EventLogSettings(eventlog_url="postgresql:"), postgres)
    async with log:
        await log.ensure_topics([topic])
        topic_id = (await log.topic(topic.name)).id
        before = int(time.time() * 1000)
        positions = await log.append([NewRecord(topic.name, b"k", b"v")] * 3)
        waiting = await flow.unpublished(started, topic.name)
        assert (waiting.records, waiting.lost) == (3, 0)
        assert waiting.oldest <= time.time() - before / 1000 + 1
        assert (await flow.not_landed(started, topic.name)).records == 3

        partition = positions[0].partition
        execute(
            "insert into usage_watermark (topic_id, partition, next_offset, lake_version)"
            f" values ('{topic_id}', {partition}, 2, 1)",
            f"delete from usage_watermark where topic_id = '{topic_id}'",
        )
        assert (await flow.unpublished(started, topic.name)).records == 1
        await log.purge(topic.name, {partition: 3})
        assert await flow.unpublished(started, topic.name) == flow.Waiting(1, 0.0, 1)


@pytest.mark.parametrize(
    ("waiting", "level"),
    [
        (flow.Waiting(0), Level.OK),
        (flow.Waiting(1_000_000, 119), Level.OK),
        (flow.Waiting(1, 121), Level.WARN),
        (flow.Waiting(1, 301), Level.FAIL),
        (flow.Waiting(1, 0, 1), Level.FAIL),
    ],
)
def test_the_age_of_the_first_waiting_record_decides(waiting: flow.Waiting, level: Level) -> None:
    found = flow.judge("usage", "published", waiting)
    assert found.level is level
    assert bool(found.mend) == (level is not Level.OK)


async def test_the_age_is_the_brokers(postgres: DatabaseSettings) -> None:
    topic = replace(TOPICS["usage.records"], name="doctor.old")
    log = open_eventlog(EventLogSettings(eventlog_url="postgresql:"), postgres)
    async with log:
        await log.ensure_topics([topic])
        await log.append([NewRecord(topic.name, b"k", b"v")])
        assert (await flow.behind(log, topic.name, {})).oldest < 300
        connection = psycopg2.connect(dsn(postgres, "owner"))
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "update eventlog.record set ms = ms - 1000000"
                " where topic_ref = (select ref from eventlog.topic where name = 'doctor.old')"
            )
        connection.close()
        await log.append([NewRecord(topic.name, b"k", b"v")])
        assert (await flow.behind(log, topic.name, {})).oldest > 900


def test_a_check_that_breaks_is_a_finding_itself(started: Installation) -> None:
    unreachable = dict(started.environment) | {
        "HEADRACE_DATABASE_URL": f"postgresql://127.0.0.1:{free_port()}/x"
    }
    findings = list(doctor.examine(replace(started, environment=unreachable)))
    broken = {finding.check for finding in findings if "could not be checked" in finding.detail}
    assert {"database", "relay lag", "publication lag", "dead letters"} <= broken


def test_a_queue_with_dead_letters(started: Installation, postgres: DatabaseSettings) -> None:
    async def prepare_queues(*messages: NewMessage) -> None:
        async with PostgresQueue(postgres) as queue:
            await queue_topology.ensure(queue)
            await queue.publish(messages)
            if not messages:
                await dead_letters.drop(queue, "notification.push", None, tenant=None)

    asyncio.run(prepare_queues())
    assert "notification.push" not in worst(flow.queues, started).detail
    asyncio.run(prepare_queues(NewMessage("", "notification.push.dlq", "dead-1", b"{}")))
    found = [f for f in flow.queues(started) if f.detail == "1 dead letters of notification.push"]
    asyncio.run(prepare_queues())
    assert [f.level for f in found] == [Level.WARN]
    assert found[0].mend.startswith("`headrace dead-letters list notification.push`")


def test_messages_that_no_queue_takes(started: Installation, execute: Execute) -> None:
    execute(
        "insert into queue_outbox_dead (id, tenant_id, family, routing_key, message_id, body, enqueued_at, code, reason) "
        "values (1, 't_doctor', 'document.index', 'x', 'm', '', now(), 'unroutable', 'no queue')",
        "delete from queue_outbox_dead where tenant_id = 't_doctor'",
    )
    found = worst(flow.dead_letters, started)
    assert (found.level, found.detail) == (Level.FAIL, "1 of document.index (unroutable)")
