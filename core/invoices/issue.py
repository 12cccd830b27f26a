"""Closing service periods and adjusting closed ones: each document is one transaction.

What was read decides what is written, so a document takes its number by comparing: if the tenant's last
number is not the one that was seen, somebody issued meanwhile, and everything is read again. Overlapping
periods and doubled adjustments cannot come to be, and nobody waits for a lock while rating.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core import crash
from core.clock import now, rfc3339
from core.crash import Point
from core.database import Database, tenant
from core.ids import new_id
from core.invoices import difference, periods, store
from core.invoices.archive import Archive
from core.invoices.document import Line, Unpriced
from core.invoices.issuing import (
    InvoiceError,
    Outcome,
    OvertakenError,
    edges_of,
    issue,
    make_document,
    unpriced_of,
)
from core.invoices.prices import charged_at
from core.invoices.store import Issued, Landed, Piece
from core.prices import Books, PriceBook
from core.rating import Rated, ServicePeriod, month_of, rate

ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Pending:
    """What a closed period still owes or gets back."""

    period: ServicePeriod
    adjusts: str
    lines: list[Line]
    landed: Landed
    since_slice: int
    price_revision: int
    unpriced: list[Unpriced]
    currency: str | None
    pieces: list[Piece]
    """All usage of the period."""


@dataclass(frozen=True, slots=True)
class Draft:
    """All usage that is not invoiced yet: `open` rated, and what closed periods still owe."""

    open: list[Rated]
    parts: list[list[Piece]]
    """The usage of each of `open`."""
    pending: list[Pending]
    closed: dict[ServicePeriod, list[Issued]]
    """What was issued, by service period."""
    landed: Landed | None
    book: PriceBook

    @property
    def pieces(self) -> list[Piece]:
        """The open usage."""
        return [piece for part in self.parts for piece in part]

    @property
    def edges(self) -> set[datetime]:
        """Between which usage is added up: it belongs to one price and to one closed period or none."""
        return edges_of(self.book.recorded) | closed_edges(self.closed)


class Invoices:
    """Issues documents of any tenant (role `app`, one tenant a transaction)."""

    def __init__(self, app: Database, archive: Archive) -> None:
        self._app, self._archive = app, archive
        self._books = Books()

    async def close(
        self, tenant_id: str, period: ServicePeriod, by: str, *, dry_run: bool = False
    ) -> Outcome:
        """The final invoice of a period; the one that is there where it was closed before.

        Raises:
            InvoiceError: `period_not_over`, `period_overlaps`, `nothing_published`, `prices_went_back`,
                `not_conserved`, `busy`, `archive_ahead`.
            core.rating.MixedCurrencyError
        """
        if period.end > now():
            raise InvoiceError(
                "period_not_over",
                f"The period ends at {rfc3339(period.end)}; close it when it is over. The draft shows it until then.",
            )
        if not dry_run:
            await self._archive.refuse_if_ahead(tenant_id)
        for _ in range(ATTEMPTS):
            try:
                with tenant(tenant_id):
                    async with self._app.writer() as connection:
                        outcome = await self._close(connection, tenant_id, period, by, dry_run=dry_run)
            except OvertakenError:
                continue
            if outcome.fresh:
                await self._archive.copy_soon(tenant_id)
            return outcome
        raise _busy()

    async def adjust(
        self, tenant_id: str, by: str, *, period: ServicePeriod | None = None, dry_run: bool = False
    ) -> list[Outcome]:
        """Adjustments of closed periods (or of one) for usage that landed after they were closed.

        Prices stay those the period was last charged at: a changed price is a price fix, which a person
        approves.

        Raises:
            InvoiceError: `not_invoiced` (a period that was never closed), `published_went_back`,
                `prices_went_back`, `not_conserved`, `busy`, `archive_ahead`.
        """
        if not dry_run:
            await self._archive.refuse_if_ahead(tenant_id)
        found = list[Outcome]()
        for closed in await self._closed(tenant_id, period):
            for _ in range(ATTEMPTS):
                try:
                    with tenant(tenant_id):
                        async with self._app.writer() as connection:
                            outcome = await self._adjust(connection, tenant_id, closed, by, dry_run=dry_run)
                except OvertakenError:
                    continue
                break
            else:
                raise _busy()
            if outcome is not None:
                crash.here(Point.ADJUSTING)
                found.append(outcome)
        if any(outcome.fresh for outcome in found):
            await self._archive.copy_soon(tenant_id)
        return found

    async def draft(self, tenant_id: str) -> Draft:
        """What the next documents would charge.

        Raises:
            InvoiceError: `published_went_back`, `prices_went_back`, `busy`.
            core.rating.MixedCurrencyError
        """
        with tenant(tenant_id):
            for _ in range(ATTEMPTS):
                async with self._app.reader() as connection:
                    book = await self._books.of(connection, tenant_id)
                    documents = await store.issued(connection)
                    closed = by_period(documents)
                    edges = edges_of(book.recorded) | closed_edges(closed)
                    pieces, landed = await store.usage(connection, edges)
                    if await store.last_number(connection) == len(documents):
                        return draft_of(book, closed, pieces, landed)
        raise _busy()

    async def _closed(self, tenant_id: str, wanted: ServicePeriod | None) -> list[ServicePeriod]:
        with tenant(tenant_id):
            async with self._app.writer() as connection:
                closed = [
                    one.period
                    for one in await store.issued(connection, within=wanted)
                    if one.document.reason == "service_period"
                ]
        if wanted is not None and wanted not in closed:
            raise InvoiceError(
                "not_invoiced",
                f"The period {periods.name(wanted)} is not closed; there is nothing to adjust.",
            )
        return closed

    async def _close(
        self, connection: AsyncConnection, tenant_id: str, period: ServicePeriod, by: str, *, dry_run: bool
    ) -> Outcome:
        book = await self._books.of(connection, tenant_id)
        last = await store.last_number(connection)
        for other in await store.issued(connection, within=period):
            if other.period == period and other.document.reason == "service_period":
                return Outcome(other.document, other.content, fresh=False)
            raise InvoiceError(
                "period_overlaps",
                f"{other.document.number} has charged usage from {other.document.service_period.start} to "
                f"{other.document.service_period.end} already; choose a period beside it.",
            )
        charged = await store.last_price_revision(connection)
        if charged > book.revision:
            raise InvoiceError(
                "prices_went_back",
                f"A document was rated at price revision {charged}, and the book ends at {book.revision}: PostgreSQL was "
                "put back to an earlier time. Record the prices that are missing again, then close the period.",
            )
        pieces, landed = await store.usage(connection, edges_of(book.recorded), within=period)
        if landed is None:
            raise InvoiceError(
                "nothing_published", "No usage was ever published; close the period once there is some."
            )
        rated = rate((piece.usage for piece in pieces), book, period)
        document_id = new_id("inv")
        currency = rated.currency or _usual_currency(book)
        document = await make_document(
            connection, tenant_id, last, document_id, period, "service_period",
            difference.lines(rated, document_id), currency, landed,
            unpriced=unpriced_of(rated), price_revision=book.revision,
        )  # fmt: skip
        return await issue(connection, document, last, by, dry_run=dry_run)

    async def _adjust(
        self, connection: AsyncConnection, tenant_id: str, period: ServicePeriod, by: str, *, dry_run: bool
    ) -> Outcome | None:
        book = await self._books.of(connection, tenant_id)
        last = await store.last_number(connection)
        documents = await store.issued(connection, within=period)
        pieces, landed = await store.usage(connection, edges_of(book.recorded), within=period)
        document_id = new_id("inv")
        pending = _pending(period, documents, pieces, landed, book, document_id)
        if pending is None:
            return None
        document = await make_document(
            connection, tenant_id, last, document_id, period, "late_usage", pending.lines, pending.currency,
            pending.landed, unpriced=pending.unpriced, price_revision=pending.price_revision,
            adjusts=pending.adjusts, since_slice=pending.since_slice,
        )  # fmt: skip
        return await issue(connection, document, last, by, dry_run=dry_run)


def by_period(documents: Iterable[Issued]) -> dict[ServicePeriod, list[Issued]]:
    """Documents by what they charge, in their order."""
    found: dict[ServicePeriod, list[Issued]] = {}
    for one in documents:
        found.setdefault(one.period, []).append(one)
    return found


def _pending(
    period: ServicePeriod,
    documents: Sequence[Issued],
    pieces: Iterable[Piece],
    landed: Landed | None,
    book: PriceBook,
    document_id: str = "",
) -> Pending | None:
    """rate(now) − charged for a closed period, at the prices it was last charged at; None where nothing changed.

    Args:
        documents: of this period, in their order.
        pieces: all its usage.

    Raises:
        InvoiceError: `published_went_back`, `prices_went_back`.
    """
    newest = documents[-1].document
    # A price fix says nothing about what has landed: it charges other prices for what others looked at.
    since = max(one.document.slice for one in documents if one.document.reason != "price_fix")
    if landed is None or landed.slice < since:
        raise InvoiceError(
            "published_went_back",
            f"{newest.number} was rated at slice {since}, and what is published ends before it: PostgreSQL or the lake "
            "was put back to an earlier time. Let usage be published again first.",
        )
    each = list(pieces)
    issued = [one.document for one in documents]
    revision = charged_at(issued, book)
    rated = rate((piece.usage for piece in each), book.as_of(revision), period)
    before = difference.charged(issued)
    lines = difference.difference(before, difference.charges(rated), document_id)
    if not lines:
        return None
    return Pending(
        period, documents[0].document.number, lines, landed, since, revision,
        unpriced_of(rated), newest.currency, each,
    )  # fmt: skip


def draft_of(
    book: PriceBook,
    closed: dict[ServicePeriod, list[Issued]],
    pieces: Sequence[Piece],
    landed: Landed | None,
) -> Draft:
    """Usage sorted by where it belongs: to a closed period, to what is left of a month of which a part is
    closed, or to months that are open as a whole. Pure.

    Raises: as `Invoices.draft`.
    """
    of_closed: dict[ServicePeriod, list[Piece]] = {period: [] for period in closed}
    of_rest: dict[ServicePeriod, list[Piece]] = {}
    whole = list[Piece]()
    for piece in pieces:
        owner = next((period for period in closed if period.holds(piece.first)), None)
        if owner is not None:
            of_closed[owner].append(piece)
            continue
        rest = remainder(piece, closed)
        if rest is None:
            whole.append(piece)
        else:
            of_rest.setdefault(rest, []).append(piece)
    parts: list[tuple[ServicePeriod | None, list[Piece]]] = [(None, whole)] if whole or not of_rest else []
    parts += [(period, of_rest[period]) for period in sorted(of_rest)]
    rated = [rate((piece.usage for piece in part), book, period) for period, part in parts]
    pending = [
        found
        for period in sorted(closed)
        if (found := _pending(period, closed[period], of_closed[period], landed, book)) is not None
    ]
    return Draft(rated, [part for _, part in parts], pending, closed, landed, book)


def closed_edges(closed: Iterable[ServicePeriod]) -> set[datetime]:
    return {edge for period in closed for edge in (period.start, period.end)}


def remainder(piece: Piece, closed: Iterable[ServicePeriod]) -> ServicePeriod | None:
    """The gap between closed periods within its month that open usage lies in; None where no part of the month is closed."""
    month = month_of(piece.first)
    touching = [one for one in closed if periods.overlap(one, month)]
    if not touching:
        return None
    start = max([one.end for one in touching if one.end <= piece.first], default=month.start)
    end = min([one.start for one in touching if one.start > piece.first], default=month.end)
    return ServicePeriod(max(start, month.start), min(end, month.end))


def _usual_currency(book: PriceBook) -> str | None:
    """Of a document without any line."""
    return next((price.currency for price in book.prices), None)


def _busy() -> InvoiceError:
    return InvoiceError(
        "busy", "Other documents of this organisation are being issued; try again in a moment."
    )
