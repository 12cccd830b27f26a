"""Usage × price book = invoice lines. Pure, exact, and rounded once.

Amounts are exact decimals until the line is complete; then each line is rounded by the policy in
`money.py` and the total is the sum of the rounded lines, so an invoice always adds up on paper.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Generic, TypeVar

from core.aggregation import combined
from core.decimals import EXACT, total
from core.meters import METERS, Aggregation, is_summable
from core.prices.book import Price, PriceBook
from core.prices.models import Part, is_additive, parts
from core.rating.money import allocate, round_amount
from core.rating.periods import ServicePeriod, month_of, prorated


class MixedCurrencyError(Exception):
    """Prices of several currencies met on one invoice; nothing is converted silently."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A quantity of one meter whose price cannot change within its period (an hour, or hours of one
    calendar month between two edges of the price book); of a meter whose quantities cannot be added up, one
    element of it."""

    meter: str
    dimensions: Mapping[str, str]
    period_start: datetime
    quantity: Decimal
    element: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Everything that one price charges; where its model or its meter accumulates, in one service period."""

    price: Price
    quantity: Decimal
    amount_unrounded: Decimal
    amount: Decimal
    period: ServicePeriod | None = None
    """What the quantity was accumulated over; None for a flat price of what is added up, to which it does not matter."""
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
        ValueError: usage outside of `period`; of a meter that cannot be added up, usage without its element.
        core.prices.PriceError: a price with a model that this version does not know.
        decimal.Inexact: an amount that no finite decimal holds; the loader refuses such prices.
    """
    priced, unpriced = _Sums[tuple[Price, ServicePeriod | None]](), _Sums[_Name]()
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
            unpriced.add((piece.meter, tuple(sorted(piece.dimensions.items()))), piece)
        else:
            additive = is_additive(price) and is_summable(piece.meter)
            priced.add((price, None if additive else within), piece)
    for price in book.committed:
        for within in periods:
            if prorated(price.minimum, price, book, within):
                priced.begin((price, within))
    quantities, without = priced.quantities(), unpriced.quantities()
    currencies = {price.currency for price, _ in quantities}
    if len(currencies) > 1:
        raise MixedCurrencyError(
            f"usage of tenant {book.tenant} is priced in {', '.join(sorted(currencies))}; "
            "give this tenant prices of one currency"
        )
    lines = tuple(
        line(price, quantities[price, within], book, within)
        for price, within in sorted(quantities, key=lambda key: _order(*key))
    )
    return Rated(
        currency=currencies.pop() if currencies else None,
        lines=lines,
        unpriced=tuple(Unpriced(*name, without[name]) for name in sorted(without)),
        unrounded=total(one.amount_unrounded for one in lines),
        total=total(one.amount for one in lines),
    )


_Name = tuple[str, tuple[tuple[str, str], ...]]
_Key = TypeVar("_Key", bound=tuple[object, ...])


class _Sums(Generic[_Key]):
    """Quantities by key: added up, or where their meter does not allow that, the value of all elements."""

    def __init__(self) -> None:
        self._added: dict[_Key, Decimal] = {}
        self._elements: dict[_Key, tuple[Aggregation, dict[str, Decimal]]] = {}

    def begin(self, key: _Key) -> None:
        """The key is there, with nothing."""
        if key not in self._elements:
            self._added.setdefault(key, Decimal(0))

    def add(self, key: _Key, piece: Usage) -> None:
        if is_summable(piece.meter):
            self._added[key] = EXACT.add(self._added.get(key, Decimal(0)), piece.quantity)
            return
        if not piece.element:
            raise ValueError(
                f"quantities of {piece.meter} cannot be added up; rate its elements, not its cells"
            )
        aggregation = METERS[piece.meter].aggregation
        self._elements.setdefault(key, (aggregation, {}))[1][piece.element] = piece.quantity

    def quantities(self) -> dict[_Key, Decimal]:
        return self._added | {key: combined(*elements) for key, elements in self._elements.items()}


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
