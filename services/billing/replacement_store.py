"""SQL of which usage event takes the place of which, on the caller's transaction.

A void of an event is counted once, whoever sends it how often. Its successor has an id of its own, so only
this table keeps it from having a second one, whose usage would count as well.
"""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.usage import Reference


@dataclass(frozen=True, slots=True)
class Successor:
    """The event that takes the place of another."""

    source: str
    id: str
    subject: str
    """Of this event: a void of it goes under the same key."""


async def claim(connection: AsyncConnection, tenant_id: str, replaced: Reference, by: Successor) -> Successor:
    """Let `by` take the place of the event; another that asks at the same time waits.

    Returns:
        `by`, or the one that took the place before.
    """
    await connection.execute(
        text(
            "insert into usage_replacement (tenant_id, source, event_id, by_source, by_id, by_subject) "
            "values (:tenant, :source, :id, :by_source, :by_id, :by_subject) on conflict do nothing"
        ),
        {
            "tenant": tenant_id, "source": replaced.source, "id": replaced.id,
            "by_source": by.source, "by_id": by.id, "by_subject": by.subject,
        },
    )  # fmt: skip
    found = await successor(connection, tenant_id, replaced)
    assert found is not None
    return found


async def successor(connection: AsyncConnection, tenant_id: str, replaced: Reference) -> Successor | None:
    """What takes the place of the event, None where nothing does."""
    rows = await connection.execute(
        text(
            "select by_source, by_id, by_subject from usage_replacement "
            "where tenant_id = :tenant and source = :source and event_id = :id"
        ),
        {"tenant": tenant_id, "source": replaced.source, "id": replaced.id},
    )
    row = rows.one_or_none()
    return None if row is None else Successor(*row)


async def take_over(
    connection: AsyncConnection, tenant_id: str, first: Successor, by: Successor
) -> Successor:
    """Let `by` take the place of whatever stands now for the event `first`; returns that."""
    standing = first
    while (found := await claim(connection, tenant_id, Reference(standing.source, standing.id), by)) != by:
        standing = found
    return standing
