"""What only the event log on tables does: retention by a call, appends in a caller's transaction, rights."""

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from core.eventlog.api import Bounds, NewRecord, OffsetOutOfRangeError
from core.eventlog.postgres import PostgresEventLog
from core.settings import DatabaseSettings
from core.topology import Topic


def _topic(retention: timedelta = timedelta(days=1)) -> Topic:
    return Topic(f"test.{uuid.uuid4().hex}", 1, retention, "key", "bytes")


def _records(topic: Topic, count: int) -> list[NewRecord]:
    return [NewRecord(topic.name, b"k", b"%d" % n) for n in range(count)]


@pytest.fixture
async def log(postgres: DatabaseSettings) -> AsyncIterator[PostgresEventLog]:
    async with PostgresEventLog(postgres) as opened:
        yield opened


async def _connect(postgres: DatabaseSettings, role: str) -> asyncpg.Connection:
    password = getattr(postgres, f"database_{role}_password").get_secret_value()
    return await asyncpg.connect(
        postgres.database_url,
        user=f"hr_{role}",
        password=password,
        server_settings={"search_path": "eventlog"},
    )


async def _stored(postgres: DatabaseSettings, topic_id: str) -> int:
    connection = await _connect(postgres, "system")
    try:
        count: int = await connection.fetchval(
            "select count(*) from record r join topic t on t.ref = r.topic_ref where t.id = $1",
            uuid.UUID(topic_id),
        )
        return count
    finally:
        await connection.close()


async def test_expire_deletes_what_is_older_than_the_retention_and_nothing_else(
    log: PostgresEventLog, postgres: DatabaseSettings
) -> None:
    short, long = _topic(timedelta(minutes=10)), _topic()
    await log.ensure_topics([short, long])
    await log.append(_records(short, 30) + _records(long, 30))
    # Older than that, without waiting: a look at all topics of a busy server takes seconds.
    connection = await _connect(postgres, "owner")
    await connection.execute(
        "update record set ms = ms - 1200000 where topic_ref = (select ref from topic where name = $1)",
        short.name,
    )
    await connection.close()
    await log.append(_records(short, 5))
    await log.expire()
    assert await log.bounds(short.name) == {0: Bounds(30, 35)}
    assert await log.bounds(long.name) == {0: Bounds(0, 30)}
    assert await _stored(postgres, (await log.topic(short.name)).id) == 5


async def test_expire_finishes_a_purge_that_was_cut_short(
    log: PostgresEventLog, postgres: DatabaseSettings
) -> None:
    topic = _topic()
    await log.ensure_topics([topic])
    await log.append(_records(topic, 30))
    info = await log.topic(topic.name)
    connection = await _connect(postgres, "system")
    await connection.execute(
        "update partition p set low = 10 from topic t where t.ref = p.topic_ref and t.id = $1",
        uuid.UUID(info.id),
    )
    await connection.close()
    with pytest.raises(OffsetOutOfRangeError):
        await anext(aiter(log.read(topic.name, 0, 5, 30)))
    await log.expire()
    assert await _stored(postgres, info.id) == 20


async def test_a_rolled_back_append_leaves_no_gap(log: PostgresEventLog, postgres: DatabaseSettings) -> None:
    topic = _topic()
    await log.ensure_topics([topic])
    connection = await _connect(postgres, "system")
    transaction = connection.transaction()
    await transaction.start()
    positions = await log.append_in(connection, _records(topic, 3))
    assert [position.offset for position in positions] == [0, 1, 2]
    assert await log.bounds(topic.name) == {0: Bounds(0, 0)}
    await transaction.rollback()
    async with connection.transaction():
        await log.append_in(connection, _records(topic, 2))
    await connection.close()
    assert await log.bounds(topic.name) == {0: Bounds(0, 2)}
    assert [r.offset async for batch in log.read(topic.name, 0, 0, 2) for r in batch] == [0, 1]


async def test_appending_again_after_the_topic_was_made_anew(
    log: PostgresEventLog, postgres: DatabaseSettings
) -> None:
    topic = _topic()
    await log.ensure_topics([topic])
    await log.append(_records(topic, 3))
    async with PostgresEventLog(postgres) as other:
        await other.delete_topic(topic.name)
        await other.ensure_topics([topic])
    assert (await log.append(_records(topic, 1)))[0].offset == 0


async def test_a_deleted_topic_leaves_nothing_behind(
    log: PostgresEventLog, postgres: DatabaseSettings
) -> None:
    topic = _topic()
    await log.ensure_topics([topic])
    await log.append(_records(topic, 30))
    connection = await _connect(postgres, "system")
    before = await connection.fetchval("select count(*) from record")
    await log.delete_topic(topic.name)
    assert await connection.fetchval("select count(*) from record") == before - 30
    await connection.close()


async def test_role_app_cannot_touch_the_log(postgres: DatabaseSettings) -> None:
    connection = await _connect(postgres, "app")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("select * from eventlog.record")
    await connection.close()


async def test_large_records_come_in_batches_of_bounded_size(log: PostgresEventLog) -> None:
    topic = _topic()
    await log.ensure_topics([topic])
    await log.append([NewRecord(topic.name, b"k", b"x" * 900_000) for _ in range(40)])
    sizes = [sum(len(r.value) for r in batch) async for batch in log.read(topic.name, 0, 0, 40)]
    assert sum(sizes) == 40 * 900_000
    assert max(sizes) <= 17_000_000


async def test_a_member_that_leaves_is_gone_at_once(
    log: PostgresEventLog, postgres: DatabaseSettings
) -> None:
    topic, group = _topic(), f"group-{uuid.uuid4().hex}"
    await log.ensure_topics([topic])
    connection = await _connect(postgres, "system")
    consumer = log.consumer([topic.name], group)
    await consumer.start()
    members = "select count(*) from group_member where group_name = $1"
    assert await connection.fetchval(members, group) == 1
    await consumer.close()
    assert await connection.fetchval(members, group) == 0
    assert (
        await connection.fetchval("select member from group_partition where group_name = $1", group) is None
    )
    await connection.close()
