"""SQL of what producers said they sent, on the caller's transaction.

Role `app`: row-level security decides what exists. Role `system`: all, or those of `tenant_id`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.paging import Page

MOST_CHECKPOINTS: Final = 100
"""Of one producer, in one answer."""


@dataclass(frozen=True, slots=True)
class Producer:
    """One life of a producer. `open` are its checkpoints that are not complete, `newest` is its last one's state."""

    tenant: str
    id: str
    producer: str
    incarnation: str
    last_sequence: int
    first_received: datetime
    last_received: datetime
    checkpoints: int
    open: int
    missing: int
    newest: str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """A checkpoint and what became of it; sequences as [first, last]."""

    producer_id: str
    id: str
    first: int
    last: int
    received: datetime
    state: str
    missing: Sequence[Sequence[int]]
    doubled: Sequence[Sequence[int]]
    repeated: Sequence[Sequence[int]]
    missing_events: int
    named: dict[str, Any] | None
    named_at: datetime | None
    closed_at: datetime | None


_OF: Final = "(c.tenant_id, c.producer, c.incarnation) = (p.tenant_id, p.producer, p.incarnation)"
_COUNTED: Final = f"""
    select p.tenant_id, p.id, p.producer, p.incarnation, p.last_sequence, p.first_received, p.last_received,
           c.checkpoints, c.open, c.missing, c.newest, p.last_slice
    from usage_producer p, lateral (
        select count(*) as checkpoints, count(*) filter (where c.state in ('incomplete', 'different')) as open,
               coalesce(sum(c.missing_events), 0)::bigint as missing,
               (array_agg(c.state order by c.slice desc, c.id desc))[1] as newest
        from usage_checkpoint c where {_OF}) c
"""


async def page(
    connection: AsyncConnection, tenant_id: str | None, *, incomplete: bool, page: Page
) -> list[Producer]:
    """Up to `page.fetch` producers, by when they were last heard of."""
    newest_first = page.order == "desc"
    above, below = (page.before, page.after) if newest_first else (page.after, page.before)
    direction = "desc" if newest_first else "asc"
    at = "(select last_slice, id from usage_producer where id = :{name} limit 1)"
    rows = await connection.execute(
        text(
            f"""
            select tenant_id, id, producer, incarnation, last_sequence, first_received, last_received, checkpoints,
                   open, missing, newest
            from ({_COUNTED}) found
            where (cast(:tenant as text) is null or tenant_id = :tenant) and (not :incomplete or open > 0)
              and (cast(:above as text) is null or (last_slice, id) > {at.format(name="above")})
              and (cast(:below as text) is null or (last_slice, id) < {at.format(name="below")})
            order by last_slice {direction}, id {direction} limit :limit
            """
        ),
        {
            "tenant": tenant_id,
            "incomplete": incomplete,
            "above": above or None,
            "below": below or None,
            "limit": page.fetch,
        },
    )
    return [Producer(*row) for row in rows]


async def find(connection: AsyncConnection, tenant_id: str | None, producer_id: str) -> Producer | None:
    rows = await connection.execute(
        text(f"{_COUNTED} where p.id = :id and (cast(:tenant as text) is null or p.tenant_id = :tenant)"),
        {"id": producer_id, "tenant": tenant_id},
    )
    row = rows.one_or_none()
    return None if row is None else Producer(*row[:11])


async def checkpoints(
    connection: AsyncConnection, producer_ids: Sequence[str], *, found_wanting: bool
) -> list[Checked]:
    """The newest `MOST_CHECKPOINTS` of each producer, those found wanting first.

    Args:
        found_wanting: only those that are not complete.
    """
    rows = await connection.execute(
        text(
            f"""
            select producer_id, id, first_sequence, last_sequence, received, state, missing, doubled, repeated,
                   missing_events, named, named_at, closed_at
            from (
                select p.id as producer_id, c.*, row_number() over (
                    partition by p.id order by c.state not in ('incomplete', 'different'), c.slice desc, c.id desc) as place
                from usage_producer p join usage_checkpoint c on {_OF}
                where p.id = any(cast(:ids as text[]))
                  and (not :wanting or c.state in ('incomplete', 'different'))) numbered
            where place <= :most order by producer_id, place
            """
        ),
        {"ids": list(producer_ids), "wanting": found_wanting, "most": MOST_CHECKPOINTS},
    )
    return [Checked(*row) for row in rows]
