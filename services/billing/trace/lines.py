"""From a line to its events, with the proof that they are what it charges."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.database import Database, tenant
from core.decimals import canonical
from core.invoices import difference, recompute, store
from core.invoices.difference import Key
from core.invoices.document import CODE_VERSION, Document, Line, number_of, period_of
from core.invoices.issue import Draft, draft_of
from core.invoices.issuing import edges_of
from core.invoices.store import Landed, Piece
from core.prices import Books, PriceBook
from core.rating import Line as RatedLine
from services.billing.invoices.handlers import InvoiceHandlers, refusals
from services.billing.trace import shown
from services.billing.trace.documents import Amounts, LineEvents, Proof, TracedLine, Verification
from services.billing.trace.lake import Lake
from services.common.errors import not_found
from services.common.paging import Page, listing

DRAFT: Final = "draft"
OTHER_CODE: Final = "rated_by_other_code"
DIFFERS: Final = "differs"
_KEPT: Final = 64
"""Lines whose pieces are remembered for the next page."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A line: whose pieces it charges, and how it computes now."""

    line: TracedLine
    landed: Landed
    behind: int
    pieces: list[Piece]
    proof: Proof


class Lines:
    def __init__(self, app: Database, invoices: InvoiceHandlers, lake: Lake, books: Books) -> None:
        self._app, self._invoices, self._lake, self._books = app, invoices, lake, books
        self._known: OrderedDict[tuple[str, str, int], Traced] = OrderedDict()

    async def events(self, tenant_id: str, name: str, number: int, after: str, limit: int) -> LineEvents:
        """A page of a line's events. The first page reads everything the line rests on and proves it; the pages
        behind it go on from what that found.

        Raises: Problem 404, 409, 422, 503.
        """
        place = shown.place_of(after)
        known = self._known.get((tenant_id, name, number)) if place and name != DRAFT else None
        traced = known or await self._trace(tenant_id, name, number)
        if name != DRAFT:
            self._known[tenant_id, name, number] = traced
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        rows = await self._lake.rows(
            tenant_id, traced.landed, traced.line["meter"], traced.pieces,
            behind=traced.behind, after=place, fetch=limit + 1,
        )  # fmt: skip
        listed = listing(
            [shown.event(row) for row in rows], Page.model_construct(limit=limit), id_field="place"
        )
        return {
            "object": "list",
            "line": traced.line,
            "proof": None if place else traced.proof,
            "data": listed["data"],
            "first_id": listed["first_id"],
            "last_id": listed["last_id"],
            "has_more": listed["has_more"],
        }

    async def verify(self, tenant_id: str, name: str) -> Verification:
        """All lines of an issued document computed again. Raises: Problem 404, 409, 503."""
        document, earlier, book = await self._document(tenant_id, name)
        result: Verification = {
            "object": "invoice_verification",
            "invoice": document.id,
            "number": document.number,
            "verified": False,
            "reason": OTHER_CODE,
            "lines": len(document.lines),
            "total": document.total,
            "recomputed_total": None,
            "differing": [],
            "generation": document.generation,
            "slice": document.slice,
            "price_revision": document.price_revision,
            "code_version": document.code_version,
        }
        if document.code_version != CODE_VERSION:
            return result
        pieces = await self._pieces(tenant_id, document, book)
        async with refusals():
            again = recompute.recompute(document, earlier, pieces, book)
        total = difference.sums(again, document.currency)[1]
        differing = [one for one in recompute.compare(document.lines, again) if not one.equal]
        same = not differing and total == document.total
        return {
            **result,
            "verified": same,
            "reason": None if same else DIFFERS,
            "recomputed_total": total,
            "differing": [
                {
                    "line": one.issued.id if one.issued else "",
                    "meter": one.key[0],
                    "dimensions": dict(one.key[1]),
                    "equal": False,
                    "issued": one.issued.amount if one.issued else None,
                    "recomputed": one.again.amount if one.again else None,
                }
                for one in differing
            ],
        }

    async def _trace(self, tenant_id: str, name: str, number: int) -> Traced:
        if name == DRAFT:
            return await self._of_draft(tenant_id, number)
        document, earlier, book = await self._document(tenant_id, name)
        if not 1 <= number <= len(document.lines):
            raise not_found("line")
        line = document.lines[number - 1]
        pieces = await self._pieces(tenant_id, document, book, line.meter)
        key = difference.key_of(line)
        mine = recompute.behind_line(document, earlier, key, pieces, book)
        again, reason = None, OTHER_CODE
        if document.code_version == CODE_VERSION:
            async with refusals():
                found = recompute.recompute(document, earlier, pieces, book)
            (compared,) = (one for one in recompute.compare([line], _of_key(found, key)) if one.key == key)
            again, reason = compared.again, "" if compared.equal else DIFFERS
        since = document.since_slice
        return Traced(
            {
                "invoice": document.id, "number": document.number, "line": number, "reason": document.reason,
                "meter": line.meter, "dimensions": line.dimensions, "currency": document.currency,
            },
            landed_of(document), _behind(since, document.generation, earlier), mine,
            _proof(line, again, reason, mine, landed_of(document), since, document.price_revision),
        )  # fmt: skip

    async def _of_draft(self, tenant_id: str, number: int) -> Traced:
        draft = await self._invoices.draft(tenant_id)
        if draft.landed is None:
            raise not_found("line")
        pieces = await self._lake.usage(tenant_id, draft.landed, draft.edges)
        async with refusals():
            again = draft_of(draft.book, draft.closed, pieces, draft.landed)
        lines, same = drafted(draft), drafted(again)
        if not 1 <= number <= len(lines):
            raise not_found("line")
        part, line = lines[number - 1]
        other = same[number - 1][1] if len(same) == len(lines) else None
        if isinstance(line, Line):
            pending = again.pending[part]
            key, revision, reason = difference.key_of(line), pending.price_revision, "late_usage"
            book = draft.book.as_of(revision)
            mine = [piece for piece in pending.pieces if recompute.is_priced_by(piece, book, key)]
            since, currency = pending.since_slice, pending.currency
            before = [one.document for one in draft.closed[pending.period]]
            behind = _behind(since, draft.landed.generation, before)
            meter, dimensions = line.meter, line.dimensions
        else:
            key, revision, reason = difference.key_of_price(line.price), draft.book.revision, DRAFT
            held = again.parts[part] if part < len(again.parts) else []
            mine = [
                piece
                for piece in held
                if recompute.is_priced_by(piece, draft.book, key)
                and (line.period is None or line.period.holds(piece.first))
            ]
            since, behind, currency = 0, 0, line.price.currency
            meter, dimensions = line.price.meter, dict(line.price.dimensions)
        return Traced(
            {
                "invoice": None, "number": None, "line": number, "reason": reason,
                "meter": meter, "dimensions": dimensions, "currency": currency,
            },
            draft.landed, behind, mine,
            _proof(line, other, "" if line == other else DIFFERS, mine, draft.landed, since, revision),
        )  # fmt: skip

    async def _document(self, tenant_id: str, name: str) -> tuple[Document, list[Document], PriceBook]:
        """A document, those before it of its service period, and the book. Raises: Problem 404."""
        document = (await self._invoices.get(tenant_id, name)).document
        period, number = period_of(document), number_of(document.number) or 0
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                before = [
                    one.document
                    for one in await store.issued(connection, within=period)
                    if one.period == period and (number_of(one.document.number) or 0) < number
                ]
                return document, before, await self._books.of(connection, tenant_id)

    async def _pieces(
        self, tenant_id: str, document: Document, book: PriceBook, meter: str | None = None
    ) -> list[Piece]:
        return await self._lake.usage(
            tenant_id,
            landed_of(document),
            edges_of(book.recorded),
            meter=meter,
            period=period_of(document),
        )


def _behind(since: int, generation: int, earlier: Sequence[Document]) -> int:
    """The slice that late usage landed behind; 0 where the tables were made anew since, when no slice says what
    changed."""
    return since if all(one.generation == generation for one in earlier) else 0


def landed_of(document: Document) -> Landed:
    return Landed(document.lake_version, document.slice, document.generation)


def drafted(draft: Draft) -> list[tuple[int, RatedLine | Line]]:
    """The lines of a draft in the order they are numbered: those of open usage, then those of adjustments, each with
    the index of its part."""
    rated: list[tuple[int, RatedLine | Line]] = [
        (part, line) for part, one in enumerate(draft.open) for line in one.lines
    ]
    return rated + [(part, line) for part, one in enumerate(draft.pending) for line in one.lines]


def _of_key(lines: Sequence[Line], key: Key) -> list[Line]:
    return [line for line in lines if difference.key_of(line) == key]


def _proof(
    line: Line | RatedLine,
    again: Line | RatedLine | None,
    reason: str,
    pieces: Sequence[Piece],
    landed: Landed,
    since: int,
    revision: int,
) -> Proof:
    return {
        "verified": not reason,
        "reason": reason or None,
        "events": sum(piece.events for piece in pieces),
        "charged": _amounts(line),
        "recomputed": None if again is None else _amounts(again),
        "generation": landed.generation,
        "slice": landed.slice,
        "since_slice": since,
        "price_revision": revision,
        "code_version": CODE_VERSION,
    }


def _amounts(line: Line | RatedLine) -> Amounts:
    if isinstance(line, Line):
        return {"quantity": line.quantity, "amount_unrounded": line.amount_unrounded, "amount": line.amount}
    return {
        "quantity": canonical(line.quantity),
        "amount_unrounded": canonical(line.amount_unrounded),
        "amount": str(line.amount),
    }
