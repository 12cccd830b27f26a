"""What every document goes through: it is put together, and issued with its row, audit event and number."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now, rfc3339
from core.conservation import GATE, conservation, verdicts
from core.decimals import canonical
from core.invoices import difference, store
from core.invoices.document import Document, Line, Previous, Reason, Unpriced, number_text, period_of, span_of
from core.invoices.store import Landed
from core.prices import Price
from core.rating import Rated, ServicePeriod


class InvoiceError(Exception):
    """Why nothing was issued; `code` is stable and the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OvertakenError(Exception):
    """Somebody issued a document of this tenant meanwhile: read again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A document, and whether this call issued it (false: it was there before, or a dry run)."""

    document: Document
    content: bytes
    fresh: bool


async def make_document(
    connection: AsyncConnection,
    tenant_id: str,
    last: int,
    document_id: str,
    period: ServicePeriod,
    reason: Reason,
    lines: list[Line],
    currency: str | None,
    landed: Landed,
    *,
    unpriced: list[Unpriced],
    price_revision: int,
    adjusts: str | None = None,
    since_slice: int = 0,
    price_fix: str | None = None,
) -> Document:
    """The document that would be issued behind number `last`."""
    before = await store.by_number(connection, last) if last else None
    unrounded, total = difference.sums(lines, currency)
    return Document(
        object="invoice" if reason == "service_period" else "adjustment",
        id=document_id,
        number=number_text(last + 1),
        tenant=tenant_id,
        reason=reason,
        adjusts=adjusts,
        price_fix=price_fix,
        service_period=span_of(period),
        currency=currency,
        lines=lines,
        unpriced=unpriced,
        unrounded=unrounded,
        total=total,
        lake_version=landed.lake_version,
        generation=landed.generation,
        slice=landed.slice,
        since_slice=since_slice,
        price_revision=price_revision,
        issued_at=rfc3339(now()),
        previous=None if before is None else Previous(before.document.number, before.sha256),
    )


async def issue(
    connection: AsyncConnection, document: Document, last: int, by: str, *, dry_run: bool = False
) -> Outcome:
    """The row, its audit event and its number; where published usage does not agree, nothing.

    Raises:
        OvertakenError
        InvoiceError: `not_conserved`.
    """
    seen = await refuse_unless_conserved(connection, document.tenant, period_of(document))
    if document.reason != "price_fix" and seen != document.lake_version:
        raise OvertakenError  # a publication came between: what agrees is not what was charged
    if dry_run:
        shown = replace(document, status="draft", number="draft")
        return Outcome(shown, shown.encode(), fresh=False)
    content = document.encode()
    await audit.record(
        connection,
        action="invoice.issue" if document.reason == "service_period" else "invoice.adjust",
        actor=by,
        tenant_id=document.tenant,
        target=document.id,
        outcome="success",
        detail={
            "number": document.number,
            "start": document.service_period.start,
            "end": document.service_period.end,
            "total": document.total,
            "currency": document.currency or "-",
            "reason": document.reason,
        },
    )
    if not await store.take_number(connection, document.tenant, last):
        raise OvertakenError
    await store.add(connection, document, content, by)
    return Outcome(document, content, fresh=True)


_MENDS: Final = {
    True: "`GET /api/v1/billing/invariants` shows where. `headrace replay run` and `headrace replay promote` publish every "
    "cell again from the lake; then try again.",
    False: "The check `conservation` of `usage_hourly` in Dagster names what does not; once a run has passed it, try again.",
}
"""By whether what is published is wrong, or only what waits to be."""


async def refuse_unless_conserved(
    connection: AsyncConnection, tenant_id: str, period: ServicePeriod | None
) -> int | None:
    """The lake version at which all published usage of the tenant agrees, that of `period` in particular.

    Raises:
        InvoiceError: `not_conserved`.
    """
    days = None if period is None else _days_of(period)
    found = await conservation(connection, days, tenants=1)
    if failed := [name for name, holds in verdicts(found, days).items() if not holds]:
        raise InvoiceError(
            "not_conserved",
            f"Usage of {tenant_id} is not proven; it is not true that {', nor that '.join(failed)}. {_MENDS[failed != [GATE]]}",
        )
    version: int | None = found["lake_version"]
    return version


def _days_of(period: ServicePeriod) -> ServicePeriod:
    """The whole days it touches: what hours and days say of them can be compared."""
    end = period.end.replace(hour=0)
    return ServicePeriod(period.start.replace(hour=0), end if end == period.end else end + timedelta(days=1))


def edges_of(prices: Iterable[Price]) -> set[datetime]:
    """Every instant at which some price ever began or ended, corrected ones too: usage added up between them
    can be rated by the book as it was known at any revision."""
    return {edge for price in prices for edge in (price.valid_from, price.valid_to) if edge is not None}


def unpriced_of(rated: Rated) -> list[Unpriced]:
    return [Unpriced(one.meter, dict(one.dimensions), canonical(one.quantity)) for one in rated.unpriced]
