"""From an event to what became of it: exactly one state, and the lines it is in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.lookup import Place, Row
from core.contracts.usage import ContractError, UsageEvent, parse_record
from core.database import Database, tenant
from core.invoices import difference, store
from core.invoices.difference import Key
from core.invoices.document import Document, Line
from core.invoices.issue import Draft
from core.invoices.store import Issued, Landed
from core.prices import Books, PriceBook
from core.rating import ServicePeriod
from services.billing.invoices.handlers import InvoiceHandlers
from services.billing.live import LiveUsage
from services.billing.trace import shown
from services.billing.trace.documents import EventLine, EventTrace, State
from services.billing.trace.lake import Lake
from services.billing.trace.lines import drafted
from services.common.errors import Problem

USAGE: Final = "usage"
DETAILS: Final[dict[State, str]] = {
    "invoiced": "It is charged by the lines named here.",
    "not_invoiced": "It is published and not invoiced yet; the draft shows it on the line named here.",
    "unpriced": "It is counted, and the price book has no price for it.",
    "no_difference": "Its service period is closed, and counting it changes no line of it.",
    "voided": "A void took it out of all sums again; `other` is the void.",
    "void": "It is a void: it takes the event in `other` out of all sums.",
    "checkpoint": "It is a checkpoint of a producer and counts nothing.",
    "duplicate": "It says the same as the record in `other`, which is the one that counts.",
    "quarantined": "It was not counted, for the reason in `code`; `other` is the record that counts, if there is one.",
    "rejected": "It could not be read, for the reason in `code`, and was not counted.",
    "not_published": "It landed and will be published with the next slices.",
    "not_landed": "It was accepted and waits to land.",
    "lost": "The record was gone from the topic before it landed; this was accepted as a loss.",
}
_FATES: Final[dict[str, State]] = {
    "duplicate": "duplicate", "quarantined": "quarantined", "rejected": "rejected",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Charge:
    """How an event stands behind some documents: under which line's key, None where it is not charged."""

    key: Key | None = None
    revision: int = 0


class Events:
    def __init__(
        self,
        app: Database,
        system: Database,
        invoices: InvoiceHandlers,
        lake: Lake,
        live: LiveUsage,
        books: Books,
    ) -> None:
        self._app, self._system, self._invoices = app, system, invoices
        self._lake, self._live, self._books = lake, live, books

    async def by_identity(self, tenant_id: str, source: str, event_id: str) -> EventTrace:
        """Raises: Problem 404 (nobody has heard of it), 409, 503."""
        published = await self._published(tenant_id)
        place = await self._lake.event(tenant_id, published.generation, source, event_id)
        if place.row is not None:
            return await self._of(tenant_id, place, published)
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                kept = await _not_counted(connection, source, event_id)
        if kept is not None:
            topic_id, partition, offset = kept
            place = await self._lake.record(tenant_id, published.generation, topic_id, partition, offset)
            if place.row is not None:
                return await self._of(tenant_id, place, published)
        if await self._waits(tenant_id, source, event_id):
            return _trace("not_landed")
        raise Problem(
            404, "not_found", "Not found",
            "No event with this source and id was received for this organisation, or it was refused when it was sent. "
            "If a producer numbers its events, GET /api/v1/usage/producers names what is missing.",
        )  # fmt: skip

    async def by_place(self, tenant_id: str, topic_id: str | None, partition: int, offset: int) -> EventTrace:
        """Raises: Problem 404 (not this organisation's, or not landed), 409, 503."""
        published = await self._published(tenant_id)
        place = await self._lake.record(tenant_id, published.generation, topic_id, partition, offset)
        if place.row is not None:
            return await self._of(tenant_id, place, published)
        if place.lost:
            return _trace("lost")
        raise Problem(
            404, "not_found", "Not found", "No record of this organisation has landed from this place."
        )

    async def _of(self, tenant_id: str, place: Place, published: Landed) -> EventTrace:
        row = place.row
        assert row is not None
        state = _FATES.get(row.fate)
        if state is not None:
            return _trace(state, row, place.winner)
        if row.kind != USAGE:
            return _trace("void" if row.kind == "void" else "checkpoint", row, place.voids)
        charged = await self._charged(tenant_id, place)
        if place.voided_by is not None:
            return _trace("voided", row, place.voided_by, charged)
        if row.slice > published.slice:
            return _trace("not_published", row)
        if any(line["effect"] == "charged" for line in charged):
            return _trace("invoiced", row, lines=charged)
        return await self._not_charged(tenant_id, row)

    async def _not_charged(self, tenant_id: str, row: Row) -> EventTrace:
        """A counted event that no document charges: it stands in the draft, has no price, or changes nothing."""
        draft, hour = await self._invoices.draft(tenant_id), _hour(row)
        closed = next((period for period in draft.closed if period.holds(hour)), None)
        book = draft.book
        if closed is not None:
            newest = draft.closed[closed][-1].document
            book = book.as_of(newest.price_revision)
        price = book.find(_meter(row), row.dimensions or {}, hour)
        if price is None:
            return _trace("unpriced", row)
        number = _number_in(draft, difference.key_of_price(price), closed, hour)
        if number is None:
            return _trace("no_difference", row)
        line = drafted(draft)[number - 1][1]
        shown_line = EventLine(
            invoice=None, number=None, line=number, reason="draft", effect="draft",
            meter=price.meter, dimensions=dict(price.dimensions), amount=str(line.amount),
        )  # fmt: skip
        return _trace("not_invoiced", row, lines=[shown_line])

    async def _charged(self, tenant_id: str, place: Place) -> list[EventLine]:
        """The lines of issued documents that the event came into, was repriced by, or was taken out of."""
        row = place.row
        assert row is not None
        hour = _hour(row)
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                documents = [one for one in await store.issued(connection) if one.period.holds(hour)]
                book = await self._books.of(connection, tenant_id)
        versions: dict[int, Place] = {row.generation: place}
        for generation in {one.document.generation for one in documents} - versions.keys():
            versions[generation] = await self._lake.event(
                tenant_id, generation, row.source or "", row.id or ""
            )
        found, now = list[EventLine](), _Charge()
        for one in documents:
            then = _behind(one.document, now, versions[one.document.generation], book)
            found += _changes(one, now, then)
            now = then
        return found

    async def _published(self, tenant_id: str) -> Landed:
        """What published cells reflect; the first generation before there are any."""
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                found = await store.landed(connection)
        return found or Landed(0, 0)

    async def _waits(self, tenant_id: str, source: str, event_id: str) -> bool:
        """True where the event stands in the outbox, or in the topic behind what landed."""
        if self._live.knows(tenant_id, source, event_id):
            return True
        async with self._system.writer() as connection:
            rows = await connection.execute(
                text(
                    "select value from outbox where tenant_id = :tenant and topic = 'usage.records' "
                    "and position(cast(:id as bytea) in value) > 0"
                ),
                {"tenant": tenant_id, "id": _in_json(event_id)},
            )
            values = [bytes(value) for value in rows.scalars()]
        return any(_is(value, tenant_id, source, event_id) for value in values)


def _behind(document: Document, now: _Charge, version: Place, book: PriceBook) -> _Charge:
    """How the event stands once a document is issued."""
    row, void = version.row, version.voided_by
    if document.reason == "price_fix":
        # It charges other prices for what is charged already; late usage is adjusted by itself.
        counted = now.key is not None
    else:
        counted = row is not None and row.kind == USAGE and row.slice <= document.slice
        counted = counted and (void is None or void.slice > document.slice)
    if row is None or not counted:
        return _Charge(None, document.price_revision)
    price = book.as_of(document.price_revision).find(_meter(row), row.dimensions or {}, _hour(row))
    return _Charge(None if price is None else difference.key_of_price(price), document.price_revision)


def _changes(one: Issued, now: _Charge, then: _Charge) -> list[EventLine]:
    document = one.document
    if then.key == now.key:
        repriced = then.key is not None and document.reason == "price_fix"
        return [_line(document, then.key, "repriced")] if repriced and then.key else []
    found = []
    if now.key is not None:
        found.append(_line(document, now.key, "taken_back" if then.key is None else "repriced"))
    if then.key is not None:
        found.append(_line(document, then.key, "charged" if now.key is None else "repriced"))
    return found


def _line(document: Document, key: Key, effect: Any) -> EventLine:
    number = next((n for n, line in enumerate(document.lines, 1) if difference.key_of(line) == key), None)
    return {
        "invoice": document.id,
        "number": document.number,
        "line": number,
        "reason": document.reason,
        "effect": effect,
        "meter": key[0],
        "dimensions": dict(key[1]),
        "amount": None if number is None else document.lines[number - 1].amount,
    }


def _number_in(draft: Draft, key: Key, closed: ServicePeriod | None, hour: datetime) -> int | None:
    """The number of the draft's line that usage of this hour and price is on."""
    for number, (part, line) in enumerate(drafted(draft), 1):
        if isinstance(line, Line):
            if closed is not None and draft.pending[part].period == closed and difference.key_of(line) == key:
                return number
            continue
        if closed is not None or difference.key_of_price(line.price) != key:
            continue
        held = draft.parts[part]
        if (line.period is None or line.period.holds(hour)) and any(
            piece.first <= hour <= piece.last and piece.meter == line.price.meter for piece in held
        ):
            return number
    return None


def _trace(
    state: State, row: Row | None = None, other: Row | None = None, lines: Sequence[EventLine] = ()
) -> EventTrace:
    return {
        "object": "usage_event_trace",
        "state": state,
        "detail": DETAILS[state],
        "code": None if row is None else row.code,
        "event": None if row is None else shown.event(row),
        "other": None if other is None else shown.event(other),
        "lines": list(lines),
    }


def _hour(row: Row) -> datetime:
    assert row.time is not None
    return row.time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _meter(row: Row) -> str:
    assert row.meter is not None
    return row.meter


async def _not_counted(
    connection: AsyncConnection, source: str, event_id: str
) -> tuple[str, int, int] | None:
    """Where the newest record of this identity stands that landed and was not counted."""
    row = (
        await connection.execute(
            text(
                "select topic_id, partition, log_offset from usage_quarantine where source = :source "
                "and event_id = :id order by slice desc, partition desc, log_offset desc limit 1"
            ),
            {"source": source, "id": event_id},
        )
    ).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def _in_json(value: str) -> bytes:
    return msgspec.json.encode(value)[1:-1]


def _is(value: bytes, tenant_id: str, source: str, event_id: str) -> bool:
    try:
        event = parse_record(value)
    except ContractError:
        return False
    named = (event.tenant, event.source, event.id)
    return isinstance(event, UsageEvent) and named == (tenant_id, source, event_id)
