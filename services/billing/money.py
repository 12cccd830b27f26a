"""Prices and the draft invoice."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from core.clock import now, rfc3339
from core.database import Database, tenant
from core.decimals import canonical, total
from core.invoices import difference
from core.invoices.issue import Pending
from core.prices import EVERYBODY, Books, Price
from core.rating import POLICY, Line, Unpriced, explain, round_amount
from services.billing import documents
from services.billing.invoices.handlers import InvoiceHandlers, plain
from services.common.errors import Problem


class Money:
    def __init__(self, app: Database, invoices: InvoiceHandlers, books: Books) -> None:
        self._app, self._invoices, self._books = app, invoices, books

    async def prices(
        self, tenant_id: str, wanted: Mapping[str, str], *, after: str, limit: int
    ) -> documents.Prices:
        """The price book as this tenant sees it, corrected rows left out, in the order of owner and meter.

        Args:
            wanted: values of `meter` and of dimensions; nothing where all are asked for.

        Raises:
            Problem: 404 `not_found`, for a cursor that is no such price.
        """
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                book = await self._books.of(connection, tenant_id)
        found = [
            price
            for price in book.prices
            if all(
                dict(price.dimensions, meter=price.meter).get(key) == value for key, value in wanted.items()
            )
        ]
        ids = [price.id for price in found]
        if after and after not in ids:
            raise Problem(
                404, "not_found", "Not found", "`after` is no price of this list; begin without it."
            )
        start, at = ids.index(after) + 1 if after else 0, now()
        data = [_price(price, at) for price in found[start : start + limit]]
        return {"object": "list", "data": data, "has_more": len(found) > start + limit}

    async def draft(self, tenant_id: str) -> documents.DraftInvoice:
        """The invoice of all usage not yet invoiced, whatever its date, from published cells: what is open,
        and what closed periods owe or get back.

        Raises:
            Problem: 409 `mixed_currency`, `published_went_back`, `prices_went_back`.
        """
        draft = await self._invoices.draft(tenant_id)
        currencies = {rated.currency for rated in draft.open} | {one.currency for one in draft.pending}
        currencies.discard(None)
        if len(currencies) > 1:
            raise Problem(
                409, "mixed_currency", "Prices in several currencies",
                f"What is not invoiced yet is priced in {', '.join(sorted(map(str, currencies)))}; close each apart.",
            )  # fmt: skip
        currency = next(iter(currencies), None) or next((price.currency for price in draft.book.prices), None)
        unrounded = total(
            [
                *(rated.unrounded for rated in draft.open),
                *(Decimal(line.amount_unrounded) for one in draft.pending for line in one.lines),
            ]
        )
        amount = total(
            [
                *(rated.total for rated in draft.open),
                *(Decimal(line.amount) for one in draft.pending for line in one.lines),
            ]
        )
        pieces = draft.pieces
        return {
            "object": "invoice",
            "status": "draft",
            "tenant": tenant_id,
            "period": {
                "start": rfc3339(min(p.first for p in pieces)) if pieces else None,
                "end": rfc3339(max(p.last for p in pieces) + timedelta(hours=1)) if pieces else None,
            },
            "currency": currency,
            "lines": [_line(line) for rated in draft.open for line in rated.lines],
            "adjustments": [_adjustment(one) for one in draft.pending],
            "unpriced": [_unpriced(item) for rated in draft.open for item in rated.unpriced],
            "unrounded": canonical(unrounded),
            "total": str(amount if currency is None else round_amount(amount, currency)),
            "rounding": POLICY,
            "lake_version": None if draft.landed is None else draft.landed.lake_version,
            "generation": None if draft.landed is None else draft.landed.generation,
            "slice": None if draft.landed is None else draft.landed.slice,
            "price_revision": draft.book.revision,
        }


def _price(price: Price, at: datetime) -> documents.PriceShown:
    return {
        "id": price.id,
        "object": "price",
        "holds_for": "everybody" if price.tenant == EVERYBODY else "you",
        "meter": price.meter,
        "dimensions": dict(price.dimensions),
        "model": price.model,
        "unit_price": canonical(price.unit_price),
        "per": price.per,
        "tiers": [
            {
                "up_to": None if tier.up_to is None else canonical(tier.up_to),
                "unit_price": canonical(tier.unit_price),
                "fee": canonical(tier.fee),
            }
            for tier in price.tiers
        ],
        "included": canonical(price.included),
        "minimum": canonical(price.minimum),
        "currency": price.currency,
        "valid_from": rfc3339(price.valid_from),
        "valid_to": None if price.valid_to is None else rfc3339(price.valid_to),
        "revision": price.revision,
        "recorded_at": None if price.recorded_at is None else rfc3339(price.recorded_at),
        "holds_now": price.holds(at),
    }


def _line(line: Line) -> documents.InvoiceLine:
    price = line.price
    return {
        "meter": price.meter,
        "dimensions": dict(price.dimensions),
        "quantity": canonical(line.quantity),
        "unit_price": canonical(price.unit_price),
        "per": price.per,
        "price": price.id,
        "amount_unrounded": canonical(line.amount_unrounded),
        "amount": str(line.amount),
        "explanation": explain(line),
    }


def _adjustment(pending: Pending) -> Any:
    unrounded, amount = difference.sums(pending.lines, pending.currency)
    return {
        "adjusts": pending.adjusts,
        "reason": "late_usage",
        "service_period": {"start": rfc3339(pending.period.start), "end": rfc3339(pending.period.end)},
        "lines": plain(pending.lines),
        "unrounded": unrounded,
        "total": amount,
    }


def _unpriced(item: Unpriced) -> documents.UnpricedUsage:
    return {
        "meter": item.meter,
        "dimensions": dict(item.dimensions),
        "quantity": canonical(item.quantity),
    }
