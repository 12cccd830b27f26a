"""SQL of the records that were not counted, on the caller's transaction.

Role `app`: row-level security decides what exists. Role `system`: all, or those of `tenant_id`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.paging import Page

State = Literal["open", "accepted", "rejected"]

_COLUMNS: Final = (
    "tenant_id, id, fate, code, kind, received, slice, topic_id, partition, log_offset, source, event_id, "
    "version, counted, bytes, state, decided_by, decided_at, sent"
)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that landed and was not counted, and what was decided about it."""

    tenant: str
    id: str
    fate: str
    code: str
    kind: str | None
    """None where it could not be read."""
    received: datetime
    slice: int
    topic_id: str
    partition: int
    offset: int
    source: str | None
    event_id: str | None
    version: Mapping[str, Any] | None
    """What it said, in the form of the contract: time, subject, data."""
    counted: Mapping[str, Any] | None
    """What the counted record of its identity says, and where that one stands."""
    bytes: int | None
    state: State
    decided_by: str | None
    decided_at: datetime | None
    sent: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Filter:
    """None for any."""

    tenant: str | None = None
    state: State | None = None
    fate: str | None = None
    code: str | None = None


async def page(connection: AsyncConnection, wanted: Filter, page: Page) -> list[Quarantined]:
    """Up to `page.fetch` records, by where they stand in the lake."""
    newest_first = page.order == "desc"
    above, below = (page.before, page.after) if newest_first else (page.after, page.before)
    direction = "desc" if newest_first else "asc"
    place = "(slice, partition, log_offset)"
    at = "(select slice, partition, log_offset from usage_quarantine where id = :{name} limit 1)"
    rows = await connection.execute(
        text(
            f"""
            select {_COLUMNS} from usage_quarantine
            where (cast(:tenant as text) is null or tenant_id = :tenant)
              and (cast(:state as text) is null or state = :state)
              and (cast(:fate as text) is null or fate = :fate)
              and (cast(:code as text) is null or code = :code)
              and (cast(:above as text) is null or {place} > {at.format(name="above")})
              and (cast(:below as text) is null or {place} < {at.format(name="below")})
            order by slice {direction}, partition {direction}, log_offset {direction} limit :limit
            """
        ),
        {
            "tenant": wanted.tenant,
            "state": wanted.state,
            "fate": wanted.fate,
            "code": wanted.code,
            "above": above or None,
            "below": below or None,
            "limit": page.fetch,
        },
    )
    return [Quarantined(*row) for row in rows]


async def find(connection: AsyncConnection, tenant_id: str | None, record_id: str) -> Quarantined | None:
    rows = await connection.execute(
        text(
            f"select {_COLUMNS} from usage_quarantine "
            "where id = :id and (cast(:tenant as text) is null or tenant_id = :tenant)"
        ),
        {"id": record_id, "tenant": tenant_id},
    )
    row = rows.one_or_none()
    return None if row is None else Quarantined(*row)


async def lock(connection: AsyncConnection, found: Quarantined) -> Quarantined:
    """The record as it is now; nobody else decides about it meanwhile."""
    rows = await connection.execute(
        text(f"select {_COLUMNS} from usage_quarantine where tenant_id = :tenant and id = :id for update"),
        {"tenant": found.tenant, "id": found.id},
    )
    return Quarantined(*rows.one())


async def decide(
    connection: AsyncConnection, found: Quarantined, state: State, decided_by: str, sent: Mapping[str, str]
) -> Quarantined:
    """Write down a decision; the record as it is then."""
    rows = await connection.execute(
        text(
            f"""
            update usage_quarantine
            set state = :state, decided_by = :by, decided_at = clock_timestamp(), sent = cast(:sent as jsonb)
            where tenant_id = :tenant and id = :id returning {_COLUMNS}
            """
        ),
        {
            "state": state,
            "by": decided_by,
            "sent": json.dumps(dict(sent)) if sent else None,
            "tenant": found.tenant,
            "id": found.id,
        },
    )
    return Quarantined(*rows.one())
