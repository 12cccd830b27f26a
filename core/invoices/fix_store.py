"""The tables of price fixes (role `system`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.invoices.document import Line, Unpriced
from core.invoices.issuing import InvoiceError
from core.invoices.store import Landed
from core.rating import ServicePeriod

State = Literal["proposed", "parked", "approved", "applied", "rejected"]
_COLUMNS: Final = (
    "id, state, price_revision, tenants, reasons, totals, items, created_by, created_at, decided_by, decided_at, "
    "accepted, applied_by, applied_at"
)


@dataclass(frozen=True, slots=True)
class Fix:
    """A row of `price_fix`."""

    id: str
    state: State
    price_revision: int
    tenants: tuple[str, ...] | None
    reasons: tuple[str, ...]
    totals: dict[str, str]
    items: int
    created_by: str
    created_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    accepted: tuple[str, ...]
    applied_by: str | None
    applied_at: datetime | None


@dataclass(frozen=True, slots=True)
class Item:
    """What a fix changes in one closed service period of one tenant."""

    tenant: str
    period: ServicePeriod
    adjusts: str
    from_revision: int
    landed: Landed
    currency: str | None
    total: Decimal
    reasons: tuple[str, ...]
    lines: list[Line]
    unpriced: list[Unpriced]


async def find(connection: AsyncConnection, fix_id: str, *, lock: bool = False) -> Fix:
    """Raises: InvoiceError `not_found`."""
    row = (
        await connection.execute(
            text(f"select {_COLUMNS} from price_fix where id = :id {'for update' if lock else ''}"),
            {"id": fix_id},
        )
    ).one_or_none()
    if row is None:
        raise InvoiceError("not_found", "There is no such price fix.")
    return _fix(row)


async def page(
    connection: AsyncConnection, *, fetch: int, after: str, before: str, ascending: bool
) -> list[Fix]:
    """One page by id, which is by time (role `system`)."""
    forward, backward = (">", "<") if ascending else ("<", ">")
    rows = await connection.execute(
        text(
            f"select {_COLUMNS} from price_fix where (:after = '' or id {forward} :after) "
            f"and (:before = '' or id {backward} :before) order by id {'asc' if ascending else 'desc'} limit :fetch"
        ),
        {"after": after, "before": before, "fetch": fetch},
    )
    return [_fix(row) for row in rows]


async def items_of(
    connection: AsyncConnection,
    fix_id: str,
    *,
    after: tuple[str, datetime] | None = None,
    fetch: int | None = None,
) -> list[Item]:
    """Items of a fix by tenant and period: all of them, or `fetch` behind one."""
    rows = await connection.execute(
        text(
            "select * from price_fix_item where price_fix = :id and (cast(:tenant as text) is null "
            "or (tenant_id, period_start) > (:tenant, cast(:start as timestamptz))) "
            "order by tenant_id, period_start limit cast(:fetch as integer)"
        ),
        {
            "id": fix_id,
            "tenant": None if after is None else after[0],
            "start": None if after is None else after[1],
            "fetch": fetch,
        },
    )
    return [
        Item(
            row.tenant_id, ServicePeriod(row.period_start, row.period_end), row.adjusts, row.from_revision,
            Landed(row.lake_version, row.slice, row.generation), row.currency, row.total, tuple(row.reasons),
            msgspec.convert(row.lines, list[Line]), msgspec.convert(row.unpriced, list[Unpriced]),
        )
        for row in rows
    ]  # fmt: skip


async def add(
    connection: AsyncConnection,
    fix_id: str,
    revision: int,
    tenants: Sequence[str] | None,
    reasons: Sequence[str],
    totals: Mapping[str, str],
    items: Sequence[Item],
    by: str,
) -> None:
    """A dry run: `parked` where it passes a bound, else `proposed`."""
    await connection.execute(
        text(
            "insert into price_fix (id, state, price_revision, tenants, reasons, totals, items, created_by) "
            "values (:id, :state, :revision, cast(:tenants as text[]), cast(:reasons as text[]), "
            "cast(:totals as jsonb), :items, :by)"
        ),
        {
            "id": fix_id,
            "state": "parked" if reasons else "proposed",
            "revision": revision,
            "tenants": None if tenants is None else list(tenants),
            "reasons": list(reasons),
            "totals": json.dumps(totals),
            "items": len(items),
            "by": by,
        },
    )
    if items:
        await connection.execute(_ADD_ITEM, [_item_row(fix_id, item) for item in items])


_ADD_ITEM: Final = text(
    "insert into price_fix_item (price_fix, tenant_id, period_start, period_end, adjusts, from_revision, slice, "
    "generation, lake_version, currency, total, reasons, lines, unpriced) values (:fix, :tenant, :start, :end, :adjusts, :from, "
    ":slice, :generation, :lake_version, :currency, :total, cast(:reasons as text[]), cast(:lines as jsonb), cast(:unpriced as jsonb))"
)


def _item_row(fix: str, item: Item) -> dict[str, Any]:
    return {
        "fix": fix,
        "tenant": item.tenant,
        "start": item.period.start,
        "end": item.period.end,
        "adjusts": item.adjusts,
        "from": item.from_revision,
        "slice": item.landed.slice,
        "generation": item.landed.generation,
        "lake_version": item.landed.lake_version,
        "currency": item.currency,
        "total": item.total,
        "reasons": list(item.reasons),
        "lines": msgspec.json.encode(item.lines).decode(),
        "unpriced": msgspec.json.encode(item.unpriced).decode(),
    }


def _fix(row: Any) -> Fix:
    return Fix(
        row.id, row.state, row.price_revision, None if row.tenants is None else tuple(row.tenants), tuple(row.reasons),
        row.totals, row.items, row.created_by, row.created_at, row.decided_by, row.decided_at, tuple(row.accepted),
        row.applied_by, row.applied_at,
    )  # fmt: skip
