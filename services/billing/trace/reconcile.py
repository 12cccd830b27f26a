"""The reconciliation of a period: from the records that landed to what is charged, with every difference explained.

What is counted comes from the landed records, what is published from PostgreSQL, what is charged from the
issued documents; nothing is computed from what it is compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import rfc3339
from core.contracts.lookup import Fate
from core.database import Database, tenant
from core.decimals import EXACT, canonical, total
from core.invoices import difference, store
from core.invoices.issue import Draft, by_period, closed_edges, draft_of
from core.invoices.issuing import edges_of
from core.invoices.prices import charged_at
from core.invoices.store import Issued, Landed, Piece
from core.prices import Books, PriceBook
from core.rating import ServicePeriod, rate, round_amount
from services.billing.invoices.handlers import refusals
from services.billing.invoices.sheet import table
from services.billing.trace.documents import Reconciliation, UnpricedSum
from services.billing.trace.lake import Lake
from services.common.errors import Problem

COLUMNS: Final = ("section", "item", "meter", "value", "unit")
COUNTED: Final = "counted"


@dataclass(frozen=True, slots=True)
class State:
    """What PostgreSQL says of a period, in one transaction."""

    period: ServicePeriod
    landed: Landed
    book: PriceBook
    closed: dict[ServicePeriod, list[Issued]]
    published: list[Piece]
    unreadable: int
    """Records that could not be read, so have no time, and were received in the period."""


class Reconciler:
    def __init__(self, app: Database, lake: Lake, books: Books) -> None:
        self._app, self._lake, self._books = app, lake, books

    async def of(self, tenant_id: str, period: ServicePeriod) -> Reconciliation:
        """Raises: Problem 409 (`period_overlaps`, `mixed_currency`, `nothing_published`), 503."""
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                state = await self._state(connection, tenant_id, period)
        edges = edges_of(state.book.recorded) | closed_edges(state.closed)
        counted = await self._lake.usage(tenant_id, state.landed, edges, period=period)
        fates = await self._lake.fates(tenant_id, state.landed, period)
        async with refusals():
            return reconciled(tenant_id, state, counted, fates)

    async def _state(self, connection: AsyncConnection, tenant_id: str, period: ServicePeriod) -> State:
        book = await self._books.of(connection, tenant_id)
        closed = by_period(await store.issued(connection, within=period))
        for one in closed:
            if not (period.start <= one.start and one.end <= period.end):
                raise Problem(
                    409, "period_overlaps", "Choose another period",
                    f"Usage from {rfc3339(one.start)} to {rfc3339(one.end)} was invoiced together; choose a period that "
                    "holds all of it.",
                )  # fmt: skip
        edges = edges_of(book.recorded) | closed_edges(closed)
        pieces, landed = await store.usage(connection, edges, within=period)
        if landed is None:
            raise Problem(409, "nothing_published", "Nothing to reconcile", "No usage was ever published.")
        unreadable = await connection.scalar(
            text(
                "select count(*) from usage_quarantine where fate = 'rejected' and kind is null and slice <= :slice "
                "and received >= :start and received < :end"
            ),
            {"slice": landed.slice, "start": period.start, "end": period.end},
        )
        return State(period, landed, book, closed, pieces, unreadable)


def reconciled(
    tenant_id: str, state: State, counted: Sequence[Piece], fates: Sequence[Fate]
) -> Reconciliation:
    """Pure. Raises: core.rating.MixedCurrencyError, core.invoices.issuing.InvoiceError."""
    records, usage = _records(state, fates), _usage(counted, state.published)
    draft = draft_of(state.book, state.closed, state.published, state.landed)
    again = draft_of(state.book, state.closed, counted, state.landed)
    money = _money(state, draft, again, counted)
    documents = [one.document for each in state.closed.values() for one in each]
    differences = [records["difference"] == 0, *(row["difference"] == "0" for row in usage)]
    return {
        "object": "reconciliation",
        "tenant": tenant_id,
        "period": {"start": rfc3339(state.period.start), "end": rfc3339(state.period.end)},
        "reconciled": all(differences) and not Decimal(money["difference"]),
        "records": records,
        "usage": usage,
        "money": money,
        "documents": [
            {"number": one.number, "reason": one.reason, "total": one.total}
            for one in sorted(documents, key=lambda one: one.number)
        ],
        "unpriced": _unpriced(state, again),
        "generation": state.landed.generation,
        "slice": state.landed.slice,
        "price_revision": state.book.revision,
    }


def _unpriced(state: State, again: Draft) -> list[UnpricedSum]:
    """Usage that is counted and costs nothing because no price is there for it."""
    rated: list[UnpricedSum] = [
        {"meter": one.meter, "dimensions": dict(one.dimensions), "quantity": canonical(one.quantity)}
        for each in again.open
        for one in each.unpriced
    ]
    newest = [each[-1].document for each in state.closed.values()]
    return rated + [
        {"meter": one.meter, "dimensions": one.dimensions, "quantity": one.quantity}
        for document in newest
        for one in document.unpriced
    ]


def _records(state: State, fates: Sequence[Fate]) -> Any:
    def number(fate: str, kind: str | None = None) -> int:
        return sum(one.records for one in fates if one.fate == fate and kind in (None, one.kind))

    counted, voids, checkpoints = (
        number(COUNTED), number(COUNTED, "void"), number(COUNTED, "checkpoint"),
    )  # fmt: skip
    landed = sum(one.records for one in fates) + state.unreadable
    duplicates, quarantined = number("duplicate"), number("quarantined")
    rejected = number("rejected") + state.unreadable
    # A void is a counted record and takes a counted event out.
    events = counted - checkpoints - 2 * voids
    published = sum(piece.events for piece in state.published)
    return {
        "landed": landed,
        "duplicates": duplicates,
        "quarantined": quarantined,
        "rejected": rejected,
        "counted": counted,
        "checkpoints": checkpoints,
        "voids": voids,
        "events": events,
        "published": published,
        "difference": (events - published) + (landed - duplicates - quarantined - rejected - counted),
    }


def _usage(counted: Sequence[Piece], published: Sequence[Piece]) -> list[Any]:
    sides: list[Mapping[str, Decimal]] = []
    for pieces in (counted, published):
        sums: dict[str, list[Decimal]] = {}
        for piece in pieces:
            sums.setdefault(piece.meter, []).append(piece.quantity)
        sides.append({meter: total(each) for meter, each in sums.items()})
    zero = Decimal(0)
    return [
        {
            "meter": meter,
            "counted": canonical(sides[0].get(meter, zero)),
            "published": canonical(sides[1].get(meter, zero)),
            "difference": canonical(EXACT.subtract(sides[0].get(meter, zero), sides[1].get(meter, zero))),
        }
        for meter in sorted({*sides[0], *sides[1]})
    ]


def _money(state: State, draft: Draft, again: Draft, counted: Sequence[Piece]) -> Any:
    """rated = invoiced + late usage + price fixes + not invoiced, for whatever of it there is."""
    charged: dict[str, list[Decimal]] = {"service_period": [], "late_usage": [], "price_fix": []}
    currencies, rated = list[str | None](), [one.total for one in again.open]
    for period, documents in state.closed.items():
        newest = documents[-1].document
        revision = charged_at([one.document for one in documents], state.book)
        usage = [piece.usage for piece in counted if period.holds(piece.first)]
        rated.append(rate(usage, state.book.as_of(revision), period).total)
        currencies.append(newest.currency)
        for one in documents:
            charged[one.document.reason].append(Decimal(one.document.total))
    waiting = [one.total for one in draft.open]
    waiting += [Decimal(difference.sums(one.lines, one.currency)[1]) for one in draft.pending]
    currencies += [one.currency for one in draft.open]
    currency = next((one for one in currencies if one), None)
    sums = {name: total(each) for name, each in charged.items()}
    left = EXACT.subtract(total(rated), total([*sums.values(), total(waiting)]))

    def shown(amount: Decimal) -> str:
        return str(amount if currency is None else round_amount(amount, currency))

    return {
        "currency": currency,
        "rated": shown(total(rated)),
        "invoiced": shown(sums["service_period"]),
        "late_usage": shown(sums["late_usage"]),
        "price_fixes": shown(sums["price_fix"]),
        "not_invoiced": shown(total(waiting)),
        "difference": canonical(left),
    }


def sheet(found: Reconciliation) -> str:
    """The report as a table, in the order in which one thing becomes the next."""
    records, money = found["records"], found["money"]
    rows: list[tuple[object, ...]] = [
        ("about", "tenant", "", found["tenant"], ""),
        ("about", "from", "", found["period"]["start"], ""),
        ("about", "to", "", found["period"]["end"], ""),
    ]
    rows += [("records", name, "", value, "records") for name, value in records.items()]
    for one in found["usage"]:
        rows += [
            ("usage", name, one["meter"], value, "quantity") for name, value in one.items() if name != "meter"
        ]
    unit = money["currency"] or ""
    rows += [
        ("documents", f"{one['number']} {one['reason']}", "", one["total"], unit)
        for one in found["documents"]
    ]
    rows += [("money", name, "", value, unit) for name, value in money.items() if name != "currency"]
    rows += [
        ("unpriced", _named(one["dimensions"]), one["meter"], one["quantity"], "quantity")
        for one in found["unpriced"]
    ]
    rows.append(("result", "reconciled", "", "yes" if found["reconciled"] else "no", ""))
    return table(COLUMNS, rows)


def _named(dimensions: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(dimensions.items()))
