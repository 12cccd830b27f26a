"""Usage × price book = invoice lines. Pure, exact, and rounded once.

Amounts are exact decimals until the line is complete; then each line is rounded by the policy in
`money.py` and the total is the sum of the rounded lines, so an invoice always adds up on paper.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from core.decimals import EXACT, total
from core.prices.book import Price, PriceBook
from core.prices.models import Part, is_additive, parts
from core.rating.money import allocate, round_amount
from core.rating.periods import ServicePeriod, month_of, prorated


class MixedCurrencyError(Exception):
    """Prices of several currencies met on one invoice; nothing is converted silently."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A quantity of one meter whose price cannot change within its period (an hour, or hours of one
    calendar month between two edges of the price book)."""

    meter: str
    dimensions: Mapping[str, str]
    period_start: datetime
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class Line:
    """Everything that one price charges; where its model accumulates, in one service period."""

    price: Price
    quantity: Decimal
    amount_unrounded: Decimal
    amount: Decimal
    period: ServicePeriod | None = None
    """What the quantity was accumulated over; None for a flat price, to which it does not matter."""
    parts: tuple[Part, ...] = ()
    """The explanation: their amounts add up to `amount_unrounded`, their shares to `amount`."""


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Usage the book has no price for. It is shown, never dropped."""

    meter: str
    dimensions: tuple[tuple[str, str], ...]
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class Rated:
    """Lines in the order of meter, dimensions, date, period; `unrounded` and `total` are their sums."""

    currency: str | None
    lines: tuple[Line, ...]
    unpriced: tuple[Unpriced, ...]
    unrounded: Decimal
    total: Decimal


def rate(usage: Iterable[Usage], book: PriceBook, period: ServicePeriod | None = None) -> Rated:
    """Rate one tenant's usage.

    Args:
        period: what an invoice is for; all usage must lie in it. Without it the service periods are the
            calendar months (UTC) that have usage. Minimums are due in each of them, used or not.

    Raises:
        MixedCurrencyError: the prices that apply are in more than one currency.
        ValueError: usage outside of `period`.
        core.prices.PriceError: a price with a model that this version does not know.
        decimal.Inexact: an amount that no finite decimal holds; the loader refuses such prices.
    """
    priced: dict[tuple[Price, ServicePeriod | None], Decimal] = {}
    unpriced: dict[tuple[str, tuple[tuple[str, str], ...]], Decimal] = {}
    periods = set[ServicePeriod]() if period is None else {period}
    for piece in usage:
        within = period or month_of(piece.period_start)
        if not within.holds(piece.period_start):
            raise ValueError(
                f"usage of {piece.period_start.isoformat()} lies outside of the service period from "
                f"{within.start.isoformat()} to {within.end.isoformat()}; rate it with its own"
            )
        periods.add(within)
        price = book.find(piece.meter, piece.dimensions, piece.period_start)
        if price is None:
            name = (piece.meter, tuple(sorted(piece.dimensions.items())))
            unpriced[name] = EXACT.add(unpriced.get(name, Decimal(0)), piece.quantity)
        else:
            key = (price, None if is_additive(price) else within)
            priced[key] = EXACT.add(priced.get(key, Decimal(0)), piece.quantity)
    for price in book.committed:
        for within in periods:
            if prorated(price.minimum, price, book, within):
                priced.setdefault((price, within), Decimal(0))
    currencies = {price.currency for price, _ in priced}
    if len(currencies) > 1:
        raise MixedCurrencyError(
            f"usage of tenant {book.tenant} is priced in {', '.join(sorted(currencies))}; "
            "give this tenant prices of one currency"
        )
    lines = tuple(
        line(price, priced[price, within], book, within)
        for price, within in sorted(priced, key=lambda key: _order(*key))
    )
    return Rated(
        currency=currencies.pop() if currencies else None,
        lines=lines,
        unpriced=tuple(Unpriced(*name, unpriced[name]) for name in sorted(unpriced)),
        unrounded=total(one.amount_unrounded for one in lines),
        total=total(one.amount for one in lines),
    )


def line(price: Price, quantity: Decimal, book: PriceBook, period: ServicePeriod | None) -> Line:
    """What `price` charges for a quantity, explained and rounded.

    Raises: as `rate`.
    """
    included = minimum = Decimal(0)
    if period is not None:
        included = prorated(price.included, price, book, period)
        minimum = prorated(price.minimum, price, book, period)
    found = parts(price, quantity, included, minimum)
    unrounded = total(part.amount for part in found)
    amount = round_amount(unrounded, price.currency)
    shares = allocate(amount, [part.amount for part in found], price.currency)
    explained = tuple(replace(part, share=share) for part, share in zip(found, shares, strict=True))
    return Line(price, quantity, unrounded, amount, period, explained)


def _order(
    price: Price, period: ServicePeriod | None
) -> tuple[str, tuple[tuple[str, str], ...], datetime, str, datetime]:
    return (
        price.meter,
        price.dimensions,
        price.valid_from,
        price.tenant,
        price.valid_from if period is None else period.start,
    )
