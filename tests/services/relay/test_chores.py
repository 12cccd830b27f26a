"""What the relay measures of the facts of usage."""

from typing import Any
from unittest.mock import Mock

from sqlalchemy import text

from core import telemetry
from core.database import Database
from services.relay.chores import chores


def value(gauge: Any, *labels: str) -> float:
    return float((gauge.labels(*labels) if labels else gauge)._value.get())


async def test_damaged_objects_and_missing_events_are_a_metric(system_database: Database) -> None:
    absent = Mock()
    (chore,) = [
        each for each in chores(system_database, absent, absent, absent) if each.name == "facts of usage"
    ]

    async def said(*statements: str) -> tuple[float, ...]:
        async with system_database.writer() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await chore.work()
        return (
            value(telemetry.USAGE_DAMAGED_OBJECTS),
            value(telemetry.USAGE_MISSING_EVENTS),
            value(telemetry.USAGE_OPEN_CHECKPOINTS, "incomplete"),
            value(telemetry.USAGE_OPEN_CHECKPOINTS, "different"),
        )

    clear = ("delete from usage_object", "delete from usage_checkpoint")
    assert await said(*clear) == (0, 0, 0, 0)
    broken = (
        "insert into usage_object (generation, path, bytes, records, sha256, first_slice, last_slice, ranges, tenants, "
        "problem, replaced_at) select 1, path, 1, 1, repeat('0', 64), 1, 1, '[]', '[]', problem, at from (values "
        "('a', 'lost', null::timestamptz), ('b', 'changed', null), ('c', null, null), ('d', 'lost', now())) as f (path, problem, at)"
    )
    open_ = (
        "insert into usage_checkpoint (tenant_id, id, producer, incarnation, first_sequence, last_sequence, hash, "
        "received, slice, slices, due, state, missing_events) select 'org_a', state, 'p', 'i', 1, 9, '', now(), 1, '{1}', "
        "'{}', state, missing from (values ('complete', 7), ('incomplete', 4), ('different', 1)) as c (state, missing)"
    )
    assert await said(broken, open_) == (2, 5, 1, 1)
    assert await said(*clear) == (0, 0, 0, 0)
