"""SQL of which usage event takes the place of which, on the caller's transaction.

A void of an event is counted once, whoever sends it how often. Its successor has an id of its own, so only
this table keeps it from having a second one, whose usage would count as well. Each event has at most one successor
and takes the place of at most one other, so events form chains: what counts is where a chain ends.
"""

from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.usage import Reference

# Two that wait for each other's rows would both see none: one organisation corrects one event at a time.
_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('usage_replacement:' || :tenant, 0))"
_STANDING: Final = """
with recursive chain as (
    select cast(:source as text) as source, cast(:id as text) as id, cast(:subject as text) as subject, 0 as place
    union all
    select r.by_source, r.by_id, r.by_subject, c.place + 1
    from chain c join usage_replacement r on r.tenant_id = :tenant and r.source = c.source and r.event_id = c.id
)
select source, id, subject from chain order by place desc limit 1
"""
_USED: Final = """
select exists (
    select from usage_replacement where tenant_id = :tenant
    and ((source = :source and event_id = :id) or (by_source = :source and by_id = :id)))
"""
_INSERT: Final = """
insert into usage_replacement (tenant_id, source, event_id, by_source, by_id, by_subject)
values (:tenant, :source, :id, :by_source, :by_id, :by_subject)
"""


@dataclass(frozen=True, slots=True)
class Event:
    """An event by its name, with its subject: a void of it goes under the same key."""

    source: str
    id: str
    subject: str = field(compare=False)


class ReplacedError(Exception):
    """Another event took the place; `standing` is what counts for it now."""

    def __init__(self, standing: Event) -> None:
        super().__init__("the event was replaced already")
        self.standing = standing


class UsedError(Exception):
    """The event that was to take a place was replaced itself, or takes the place of another."""


async def replace(connection: AsyncConnection, tenant_id: str, replaced: Reference, by: Event) -> None:
    """Let `by` take the place of an event; doing the same again changes nothing.

    Raises:
        ReplacedError: another did before.
        UsedError: `by` is part of another correction.
    """
    await connection.execute(text(_LOCK), {"tenant": tenant_id})
    rows = await connection.execute(
        text(
            "select by_source, by_id, by_subject from usage_replacement "
            "where tenant_id = :tenant and source = :source and event_id = :id"
        ),
        {"tenant": tenant_id, "source": replaced.source, "id": replaced.id},
    )
    found = rows.one_or_none()
    if found is None:
        await _write(connection, tenant_id, Event(replaced.source, replaced.id, ""), by)
    elif Event(*found) != by:
        raise ReplacedError(await _standing(connection, tenant_id, Event(*found)))


async def take_over(connection: AsyncConnection, tenant_id: str, first: Event, by: Event) -> Event:
    """Let `by` take the place of whatever stands now for the event `first`; returns that.

    Raises:
        UsedError: `by` is part of another correction.
    """
    await connection.execute(text(_LOCK), {"tenant": tenant_id})
    standing = await _standing(connection, tenant_id, first)
    await _write(connection, tenant_id, standing, by)
    return standing


async def _standing(connection: AsyncConnection, tenant_id: str, first: Event) -> Event:
    rows = await connection.execute(
        text(_STANDING),
        {"tenant": tenant_id, "source": first.source, "id": first.id, "subject": first.subject},
    )
    return Event(*rows.one())


async def _write(connection: AsyncConnection, tenant_id: str, replaced: Event, by: Event) -> None:
    named = {"tenant": tenant_id, "source": by.source, "id": by.id}
    if (await connection.execute(text(_USED), named)).scalar_one():
        raise UsedError
    await connection.execute(
        text(_INSERT),
        {
            "tenant": tenant_id, "source": replaced.source, "id": replaced.id,
            "by_source": by.source, "by_id": by.id, "by_subject": by.subject,
        },
    )  # fmt: skip
