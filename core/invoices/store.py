"""The tables of invoices. Role `app` inside `with tenant(…)`, unless said otherwise."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import meters
from core.invoices.document import Document, decode, number_of, sha256
from core.meters import Aggregation
from core.rating import ServicePeriod, Usage

_COLUMNS: Final = (
    "number, id, period_start, period_end, reason, slice, price_revision, currency, sha256, document"
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A row of `invoice`, and what its bytes say."""

    content: bytes
    sha256: str
    document: Document
    period: ServicePeriod


@dataclass(frozen=True, slots=True)
class Landed:
    """What published cells reflect."""

    lake_version: int
    slice: int
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Usage of one meter and set of dimensions between two edges, or one element of it where it cannot be
    added up; `first` and `last` are hours with cells.

    An element stands for what it was chosen from: `first` and `last` are those of all elements between the edges, and
    so is `events` where one of them decides (maximum, minimum, latest value)."""

    meter: str
    dimensions: dict[str, str]
    quantity: Decimal
    events: int
    first: datetime
    last: datetime
    element: str = ""

    @property
    def usage(self) -> Usage:
        return Usage(self.meter, self.dimensions, self.first, self.quantity, self.element)


async def usage(
    connection: AsyncConnection, edges: Iterable[datetime], within: ServicePeriod | None = None
) -> tuple[list[Piece], Landed | None]:
    """The tenant's usage, added up by meter, dimensions and month between `edges`, and what it reflects, in
    one snapshot. None before anything was published.

    Of meters that cannot be added up come the elements that decide: the greatest or the smallest, or for a unique
    count each once."""
    rows = await connection.execute(
        text(
            """
            with sums as (
                select meter, min(dimensions::text)::jsonb as dimensions, sum(quantity) as quantity,
                       sum(events)::bigint as events, min(period_start) as first, max(period_start) as last, '' as element
                from usage_cell where grain = 'hour' and meter <> all(cast(:others as text[]))
                    and (cast(:since as timestamptz) is null or period_start >= :since)
                    and (cast(:until as timestamptz) is null or period_start < :until)
                group by meter, dimensions_key, width_bucket(period_start, cast(:edges as timestamptz[])),
                         date_trunc('month', period_start at time zone 'UTC')
            ), elements as (
                select meter, dimensions_key, min(dimensions::text)::jsonb as dimensions, min(quantity) as quantity,
                       sum(events)::bigint as events, min(period_start) as first, max(period_start) as last, element,
                       width_bucket(period_start, cast(:edges as timestamptz[])) as segment,
                       date_trunc('month', period_start at time zone 'UTC') as month
                from usage_element where events > 0 and meter = any(cast(:others as text[]))
                    and (cast(:since as timestamptz) is null or period_start >= :since)
                    and (cast(:until as timestamptz) is null or period_start < :until)
                group by meter, dimensions_key, element, segment, month
            ), placed as (
                select *, row_number() over (piece order by element) as lowest,
                       row_number() over (piece order by element desc) as highest,
                       (sum(events) over piece)::bigint as together, min(first) over piece as since, max(last) over piece as till
                from elements window piece as (partition by meter, dimensions_key, segment, month)
            ), chosen as (
                select * from sums
                union all
                select meter, dimensions, quantity,
                       case when meter = any(cast(:every as text[])) then events else together end, since, till, element
                from placed
                where meter = any(cast(:every as text[])) or (meter = any(cast(:smallest as text[])) and lowest = 1)
                    or (meter = any(cast(:greatest as text[])) and highest = 1)
            )
            select p.lake_version, p.slice, p.generation, c.meter, c.dimensions, c.quantity, c.events, c.first, c.last, c.element
            from (select 1) one
            left join (select lake_version, slice, generation from usage_publication order by lake_version desc limit 1) p on true
            left join chosen c on true
            order by c.meter, c.first, c.dimensions, c.element
            """
        ),
        {
            "edges": sorted(set(edges)),
            "since": None if within is None else within.start,
            "until": None if within is None else within.end,
            "others": meters.not_summable(),
            "every": meters.names(Aggregation.UNIQUE_COUNT),
            "smallest": meters.names(Aggregation.MIN),
            "greatest": meters.names(Aggregation.MAX, Aggregation.LATEST),
        },
    )
    found = rows.all()
    landed = None if found[0][0] is None else Landed(found[0][0], found[0][1], found[0][2])
    return [Piece(*row[3:]) for row in found if row[3] is not None], landed


async def landed(connection: AsyncConnection) -> Landed | None:
    """What published cells reflect, None before anything was published."""
    row = (
        await connection.execute(
            text(
                "select lake_version, slice, generation from usage_publication order by lake_version desc limit 1"
            )
        )
    ).one_or_none()
    return None if row is None else Landed(*row)


async def last_number(connection: AsyncConnection) -> int:
    """The last number the tenant has given out; 0 for none."""
    found: int | None = await connection.scalar(text("select last from invoice_sequence"))
    return found or 0


async def last_price_revision(connection: AsyncConnection) -> int:
    """The newest revision of prices that a document of the tenant was rated at; 0 for none."""
    found: int | None = await connection.scalar(text("select max(price_revision) from invoice"))
    return found or 0


async def issued(connection: AsyncConnection, *, within: ServicePeriod | None = None) -> list[Issued]:
    """The tenant's documents in the order they were issued; with `within` those whose period overlaps it."""
    rows = await connection.execute(
        text(
            f"""
            select {_COLUMNS} from invoice
            where (cast(:start as timestamptz) is null or period_end > :start)
              and (cast(:end as timestamptz) is null or period_start < :end)
            order by number
            """
        ),
        {"start": within.start if within else None, "end": within.end if within else None},
    )
    return [_issued(row) for row in rows]


async def by_number(connection: AsyncConnection, number: int) -> Issued | None:
    row = (
        await connection.execute(
            text(f"select {_COLUMNS} from invoice where number = :number"), {"number": number}
        )
    ).one_or_none()
    return None if row is None else _issued(row)


async def by_id(connection: AsyncConnection, document_id: str) -> Issued | None:
    row = (
        await connection.execute(text(f"select {_COLUMNS} from invoice where id = :id"), {"id": document_id})
    ).one_or_none()
    return None if row is None else _issued(row)


async def page(
    connection: AsyncConnection, *, fetch: int, after: str, before: str, ascending: bool
) -> list[Issued]:
    """One page by id, which is by time."""
    forward, backward = (">", "<") if ascending else ("<", ">")
    rows = await connection.execute(
        text(
            f"""
            select {_COLUMNS} from invoice
            where (:after = '' or id {forward} :after) and (:before = '' or id {backward} :before)
            order by id {"asc" if ascending else "desc"} limit :fetch
            """
        ),
        {"after": after, "before": before, "fetch": fetch},
    )
    return [_issued(row) for row in rows]


async def take_number(connection: AsyncConnection, tenant_id: str, last: int) -> bool:
    """Take the number behind `last`; False where somebody else took it since. The last statement but the
    row itself: nobody else of the tenant gets a number until this transaction ends."""
    await connection.execute(
        text("insert into invoice_sequence (tenant_id, last) values (:tenant, 0) on conflict do nothing"),
        {"tenant": tenant_id},
    )
    taken = await connection.execute(
        text("update invoice_sequence set last = :next where tenant_id = :tenant and last = :last"),
        {"tenant": tenant_id, "last": last, "next": last + 1},
    )
    return taken.rowcount == 1


async def add(connection: AsyncConnection, document: Document, content: bytes, issued_by: str) -> None:
    """Insert the row of an issued document."""
    await connection.execute(
        text(
            """
            insert into invoice (tenant_id, number, id, reason, price_fix, period_start, period_end, generation, slice, lake_version,
                price_revision, code_version, currency, total, document, sha256, issued_by, issued_at)
            values (:tenant_id, :number, :id, :reason, :price_fix, cast(:start as timestamptz),
                cast(:end as timestamptz), :generation, :slice, :lake_version, :price_revision, :code_version, :currency,
                cast(:total as numeric), :document, :sha256, :issued_by, cast(:issued_at as timestamptz))
            """
        ),
        row_of(document, content, issued_by),
    )


def row_of(document: Document, content: bytes, issued_by: str) -> dict[str, Any]:
    """The columns of a document, all of which stand in it but `issued_by`."""
    return {
        "tenant_id": document.tenant,
        "number": number_of(document.number),
        "id": document.id,
        "reason": document.reason,
        "price_fix": document.price_fix,
        "start": datetime.fromisoformat(document.service_period.start),
        "end": datetime.fromisoformat(document.service_period.end),
        "generation": document.generation,
        "slice": document.slice,
        "lake_version": document.lake_version,
        "price_revision": document.price_revision,
        "code_version": document.code_version,
        "currency": document.currency,
        "total": Decimal(document.total),
        "document": content,
        "sha256": sha256(content),
        "issued_by": issued_by,
        "issued_at": datetime.fromisoformat(document.issued_at),
    }


def _issued(row: Any) -> Issued:
    content = bytes(row.document)
    return Issued(content, row.sha256, decode(content), ServicePeriod(row.period_start, row.period_end))
