"""What billing reads and writes in PostgreSQL. Whatever must fit together comes from one statement,
which is one snapshot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import meters
from core.ids import derived_id
from core.meters import Aggregation
from services.billing.live import Published

Grain = Literal["hour", "day"]
MAX_CELLS: Final = 10_000

_PUBLISHED: Final = """
published as (
    select (select jsonb_agg(jsonb_build_array(topic_id, partition, next_offset)) from usage_watermark) as offsets,
           (select max(lake_version) from usage_publication) as version
)
"""


@dataclass(frozen=True, slots=True)
class CellRow:
    """A published cell, or several cells added up; `period_start` is None for a sum over all periods."""

    meter: str
    period_start: datetime | None
    dimensions: Mapping[str, str]
    quantity: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Usage of meters that cannot be added up."""

    cells: list[CellRow]
    """At most `MAX_CELLS` + 1; where everything is one sum, a row a meter without period."""
    periods: list[CellRow]
    """Each meter in each period, over all dimensions; none where everything is one sum."""
    whole: dict[str, Decimal]
    """Each meter over all periods and dimensions."""


@dataclass(frozen=True, slots=True)
class Import:
    """A registered import; events of its source from start to end (both included) may be old."""

    id: str
    source: str
    period_start: datetime
    period_end: datetime

    @classmethod
    def of(cls, tenant_id: str, source: str, start: datetime, end: datetime) -> "Import":
        """Declaring the same again is the same import."""
        made = derived_id(tenant_id, source, start.isoformat(), end.isoformat())
        return cls(f"imp_{made}", source, start, end)


async def published(connection: AsyncConnection) -> Published:
    row = (await connection.execute(text(f"with {_PUBLISHED} select offsets, version from published"))).one()
    return _published(row[0], row[1])


async def cells(
    connection: AsyncConnection,
    grain: Grain,
    *,
    since: datetime | None,
    until: datetime | None,
    meter: str | None,
    summed: bool,
) -> tuple[list[CellRow], Published]:
    """The tenant's cells of [since, until) and what they reflect, in one snapshot; without those of meters that
    cannot be added up (`elements`).

    Args:
        summed: one row for each meter instead of one for each cell; else at most `MAX_CELLS` + 1.
    """
    wanted = """
        from usage_cell where grain = :grain and meter <> all(cast(:others as text[]))
            and (cast(:since as timestamptz) is null or period_start >= :since)
            and (cast(:until as timestamptz) is null or period_start < :until)
            and (cast(:meter as text) is null or meter = :meter)
    """
    chosen = (
        f"select meter, null::timestamptz as period_start, null::jsonb as dimensions, sum(quantity) as quantity, "
        f"sum(events)::bigint as events {wanted} group by meter"
        if summed
        else f"select meter, period_start, dimensions, quantity, events {wanted} "
        "order by period_start, meter, dimensions_key limit :limit"
    )
    rows = await connection.execute(
        text(
            f"with {_PUBLISHED}, chosen as ({chosen}) "
            "select p.offsets, p.version, c.meter, c.period_start, c.dimensions, c.quantity, c.events "
            "from published p left join chosen c on true"
        ),
        {
            "grain": grain,
            "since": since,
            "until": until,
            "meter": meter,
            "others": meters.not_summable(),
            **({} if summed else {"limit": MAX_CELLS + 1}),
        },
    )
    found = rows.all()
    return [CellRow(row[2], row[3], row[4] or {}, row[5], row[6]) for row in found if row[2] is not None], (
        _published(found[0][0], found[0][1])
    )


@dataclass(frozen=True, slots=True)
class Behind:
    """What the topic holds beyond the published cells, of one element; below zero where it is voided."""

    meter: str
    period_start: datetime
    dimensions: str
    """Canonical JSON."""
    element: str
    quantity: Decimal
    """What the element is worth."""
    events: int


_PERIOD: Final[Mapping[Grain | Literal["total"], str]] = {
    "total": "null::timestamptz",
    "hour": "period_start",
    "day": "date_trunc('day', period_start, 'UTC')",
}


_WHOLE, _PERIODS, _CELLS = 3, 1, 0
"""What `grouping` says of rows that period and dimensions are summed up in, only dimensions, and neither."""


async def elements(
    connection: AsyncConnection,
    grain: Grain | Literal["total"],
    *,
    since: datetime | None,
    until: datetime | None,
    meter: str | None,
    behind: Sequence[Behind],
) -> tuple[Standing, Published]:
    """Cells of meters that cannot be added up, with what is behind them, and what the published part reflects, in
    one snapshot."""
    rows = await connection.execute(
        text(
            f"""
            with {_PUBLISHED}, behind as (
                select meter, period_start, encode(sha256(convert_to(dimensions, 'UTF8')), 'hex') as dimensions_key,
                       cast(dimensions as jsonb)::text as dimensions, element, quantity, events
                from jsonb_to_recordset(cast(:behind as jsonb)) as b(
                    meter text, period_start timestamptz, dimensions text, element text, quantity numeric, events bigint)
            ), standing as (
                select meter, period_start, dimensions_key, min(dimensions) as dimensions, element collate "C" as element,
                       max(quantity) as quantity, sum(events) as events
                from (
                    select meter, period_start, dimensions_key, dimensions::text as dimensions, element, quantity, events
                    from usage_element where events > 0 and meter = any(cast(:others as text[]))
                        and (cast(:since as timestamptz) is null or period_start >= :since)
                        and (cast(:until as timestamptz) is null or period_start < :until)
                        and (cast(:meter as text) is null or meter = :meter)
                    union all select * from behind
                ) every
                group by meter, period_start, dimensions_key, element collate "C" having sum(events) > 0
            ), placed as (
                select *, {_PERIOD[grain]} as period from standing
            ), chosen as (
                select meter, period, dimensions_key, min(dimensions) as dimensions, sum(events)::bigint as events,
                       case when meter = any(cast(:smallest as text[])) then (array_agg(quantity order by element))[1]
                            when meter = any(cast(:greatest as text[])) then (array_agg(quantity order by element desc))[1]
                            else count(distinct element) end as quantity,
                       grouping(period, dimensions_key) as level
                from placed group by grouping sets ((meter), (meter, period), (meter, period, dimensions_key))
                order by level desc, period, meter, dimensions_key limit :limit
            )
            select p.offsets, p.version, c.meter, c.period, cast(c.dimensions as jsonb), c.quantity, c.events, c.level
            from published p left join chosen c on true
            """
        ),
        {
            "since": since,
            "until": until,
            "meter": meter,
            "behind": json.dumps([_behind(one) for one in behind]),
            "others": meters.not_summable(),
            "smallest": meters.names(Aggregation.MIN),
            "greatest": meters.names(Aggregation.MAX, Aggregation.LATEST),
            "limit": 2 * (MAX_CELLS + 1) + len(meters.METERS),
        },
    )
    found = rows.all()
    of = {
        level: [
            CellRow(row[2], row[3], {} if level else row[4], row[5], row[6])
            for row in found
            if row[2] is not None and row[7] == level
        ]
        for level in (_WHOLE, _PERIODS, _CELLS)
    }
    whole = {row.meter: row.quantity for row in of[_WHOLE]}
    if grain == "total":
        standing = Standing(of[_WHOLE], [], whole)
    else:
        standing = Standing(of[_CELLS], of[_PERIODS], whole)
    return standing, _published(found[0][0], found[0][1])


def _behind(one: Behind) -> dict[str, Any]:
    return {**asdict(one), "period_start": one.period_start.isoformat(), "quantity": str(one.quantity)}


async def find_tenant(connection: AsyncConnection, wanted: str) -> str | None:
    """Id of the organisation with this id or slug, among those the role may see."""
    found: str | None = await connection.scalar(
        text("select id from organisation where id = :wanted or slug = :wanted"), {"wanted": wanted}
    )
    return found


async def add_import(connection: AsyncConnection, tenant_id: str, made: Import, created_by: str) -> bool:
    """Register an import; False where the same one is registered already, or the organisation is gone."""
    result = await connection.execute(
        text(
            """
            insert into usage_import (tenant_id, id, source, period_start, period_end, created_by)
            select o.id, :id, :source, :period_start, :period_end, :created_by
            from organisation o where o.id = :tenant_id
            on conflict (tenant_id, id) do nothing
            """
        ),
        {
            "tenant_id": tenant_id,
            "id": made.id,
            "source": made.source,
            "period_start": made.period_start,
            "period_end": made.period_end,
            "created_by": created_by,
        },
    )
    return result.rowcount == 1


async def find_imports(connection: AsyncConnection, tenant_id: str, ids: Sequence[str]) -> list[Import]:
    """Those of `ids` that are imports of the tenant."""
    rows = await connection.execute(
        text(
            "select id, source, period_start, period_end from usage_import "
            "where tenant_id = :tenant_id and id = any(cast(:ids as text[]))"
        ),
        {"tenant_id": tenant_id, "ids": list(ids)},
    )
    return [Import(*row) for row in rows]


async def outbox_records(connection: AsyncConnection, most: int) -> int:
    """Records that wait in the outbox, counted up to `most` (role `system`)."""
    counted: int = await connection.scalar(
        text("select count(*) from (select 1 from outbox limit :most) waiting"), {"most": most}
    )
    return counted


def _published(offsets: list[tuple[str, int, int]] | None, version: int | None) -> Published:
    by_topic: dict[str, dict[int, int]] = {}
    for topic_id, partition, offset in offsets or ():
        by_topic.setdefault(topic_id, {})[partition] = offset
    return Published(by_topic, version)
