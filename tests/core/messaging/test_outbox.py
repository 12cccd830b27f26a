"""Outbox rows live and die with the caller's transaction, and belong to one tenant."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, tenant
from core.eventlog.api import NewRecord, RecordTooLargeError, UnknownTopicError
from core.eventlog.headers import decode
from core.ids import new_id
from core.messaging.outbox import enqueue
from core.messaging.trace import trace_context


def record(value: bytes, topic: str = "usage.records") -> NewRecord:
    return NewRecord(topic, b"key", value, (("content-type", b"application/json"),))


async def waiting(database: Database, tenant_id: str) -> list[bytes]:
    async with database.reader() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :tenant order by id"), {"tenant": tenant_id}
        )
        return [bytes(row[0]) for row in rows]


async def test_committed_records_wait_in_order(app_database: Database, system_database: Database) -> None:
    org = new_id("org")
    values = [str(number).encode() for number in range(300)]
    with tenant(org):
        async with app_database.writer() as connection:
            await enqueue(connection, [record(value) for value in values], org)
    assert await waiting(system_database, org) == values


async def test_rolled_back_records_never_existed(app_database: Database, system_database: Database) -> None:
    org = new_id("org")

    async def fail() -> None:
        async with app_database.writer() as connection:
            await enqueue(connection, [record(b"1")], org)
            raise ZeroDivisionError

    with tenant(org), pytest.raises(ZeroDivisionError):
        await fail()
    assert await waiting(system_database, org) == []


async def test_role_app_cannot_write_for_another_tenant(app_database: Database) -> None:
    with tenant(new_id("org")), pytest.raises(DBAPIError, match="row-level security"):
        async with app_database.writer() as connection:
            await enqueue(connection, [record(b"1")], new_id("org"))


@pytest.mark.parametrize(
    "statement", ["select * from outbox", "delete from outbox", "select * from outbox_dead"]
)
async def test_role_app_cannot_read_or_delete(app_database: Database, statement: str) -> None:
    with tenant(new_id("org")), pytest.raises(DBAPIError, match="permission denied"):
        async with app_database.writer() as connection:
            await connection.execute(text(statement))


async def test_what_the_log_would_refuse_is_refused_at_once(
    app_database: Database, system_database: Database
) -> None:
    org = new_id("org")
    with tenant(org):
        async with app_database.writer() as connection:
            with pytest.raises(UnknownTopicError, match="nobody"):
                await enqueue(connection, [record(b"1"), record(b"2", topic="nobody.knows")], org)
            with pytest.raises(RecordTooLargeError, match="1000032"):
                await enqueue(connection, [record(b"1"), record(b"x" * 1_000_001)], org)
            await enqueue(connection, [], org)
    assert await waiting(system_database, org) == []


async def test_the_trace_goes_along(app_database: Database, system_database: Database) -> None:
    org = new_id("org")
    tracer = TracerProvider().get_tracer("test")
    with tenant(org), tracer.start_as_current_span("request") as span:
        async with app_database.writer() as connection:
            await enqueue(connection, [record(b"1")], org)
    async with system_database.reader() as connection:
        encoded = await connection.scalar(
            text("select headers from outbox where tenant_id = :tenant"), {"tenant": org}
        )
    headers = decode(encoded)
    assert ("content-type", b"application/json") in headers
    received = trace.get_current_span(trace_context(headers)).get_span_context()
    assert received.trace_id == span.get_span_context().trace_id
    assert received.span_id == span.get_span_context().span_id


@pytest.mark.parametrize(
    "broken", [b"", b"00-zz", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"]
)
def test_a_broken_trace_header_is_no_trace(broken: bytes) -> None:
    context = trace_context((("traceparent", broken),))
    assert not trace.get_current_span(context).get_span_context().is_valid
