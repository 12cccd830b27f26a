"""Service periods: what a quantity is accumulated over where its price is not the same for every unit."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Final

from core.decimals import EXACT
from core.prices.book import Price, PriceBook

_HOUR: Final = timedelta(hours=1)
_FLOOR: Final = Context(prec=250, rounding=ROUND_FLOOR)
_SHARE_DIGITS: Final = Decimal("1e-9")
"""A part of an included quantity or a minimum is a term of the price, not yet money on a line: it has
as many digits as a quantity."""


@dataclass(frozen=True, slots=True, order=True)
class ServicePeriod:
    """Full hours from `start` to `end`, which no longer belongs to it."""

    start: datetime
    end: datetime

    def holds(self, at: datetime) -> bool:
        return self.start <= at < self.end


def month_of(at: datetime) -> ServicePeriod:
    """The calendar month (UTC) that an instant lies in: the service period unless an invoice gives its own."""
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return ServicePeriod(start, (start + timedelta(days=32)).replace(day=1))


def prorated(value: Decimal, price: Price, book: PriceBook, period: ServicePeriod) -> Decimal:
    """The part of `value`, which is for a whole service period, for the hours in which the price stands.

    It stands where usage with exactly its dimensions would fall under it: neither before or behind its
    dates, nor where a later price has taken over. Computed as differences of one rising function, so
    that the parts of two prices that follow each other add up to the whole.
    """
    if not value:
        return value
    inside = [edge for edge in book.edges() if period.start < edge < period.end]
    found = Decimal(0)
    for start, end in zip([period.start, *inside], [*inside, period.end], strict=True):
        if book.find(price.meter, dict(price.dimensions), start) == price:
            found = EXACT.add(found, EXACT.subtract(_until(value, period, end), _until(value, period, start)))
    return found


def _until(value: Decimal, period: ServicePeriod, at: datetime) -> Decimal:
    if at == period.end:
        return value
    passed, hours = (at - period.start) // _HOUR, (period.end - period.start) // _HOUR
    return _FLOOR.divide(EXACT.multiply(value, Decimal(passed)), Decimal(hours)).quantize(
        _SHARE_DIGITS, context=_FLOOR
    )
