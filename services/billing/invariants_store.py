"""What must agree beside `core.conservation`, from PostgreSQL. Each function is one statement, which is one snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.conservation import NOBODYS


@dataclass(frozen=True, slots=True)
class Lost:
    """Offsets [first, end) that were gone from the topic before they landed; an end that nobody knows is None."""

    topic_id: str
    partition: int
    first: int
    end: int | None
    kind: str
    reason: str
    accepted_by: str
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class Nobodys:
    """Counted usage of an organisation that does not exist: `events` in hours from `first` to `last`."""

    tenant_id: str
    events: int
    first: datetime
    last: datetime


async def nobodys(connection: AsyncConnection, *, most: int) -> Sequence[Nobodys]:
    """Usage that would be charged to nobody, most events first (role `system`)."""
    rows = await connection.execute(text(f"{NOBODYS} limit :most"), {"most": most})
    return [Nobodys(*row) for row in rows]


async def lost(connection: AsyncConnection) -> Sequence[Lost]:
    """Records that never landed and were accepted as lost (role `system`)."""
    rows = await connection.execute(
        text(
            "select topic_id, partition, first_offset, end_offset, kind, reason, accepted_by, accepted_at from landing_loss "
            "where topic = 'usage.records' order by accepted_at, partition"
        )
    )
    return [Lost(*row) for row in rows]
