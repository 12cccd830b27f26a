"""Safety bounds of price fixes: what passes one is parked for a person, never posted by itself.

After incidents elsewhere: a price 100,000 times too high in 13 rows of a list, and $35 instead of $0.035.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from core.decimals import EXACT, from_nano, nano_of, total
from core.invoices.document import Charge, Document, Line

PRICE_RATIO: Final = Decimal(10)
"""A price that becomes more than so many times another, either way, is more likely a slip of a unit."""
TRAILING_SHARE: Final = Decimal("0.5")
"""Of what the tenant's last service periods cost on average, one fix may change a period by this part."""
TRAILING_PERIODS: Final = 3
SMALL: Final = Decimal(1)
"""Of the currency: a change below it is not held up by the average."""

RATIO, AVERAGE = "price_ratio", "trailing_average"


def trailing_average(documents: Iterable[Document]) -> Decimal:
    """What the last `TRAILING_PERIODS` service periods cost with their adjustments; 0 where there is none."""
    periods: dict[tuple[str, str], list[Decimal]] = {}
    for document in documents:
        span = document.service_period
        periods.setdefault((span.start, span.end), []).append(Decimal(document.total))
    newest = [total(periods[key]) for key in sorted(periods)[-TRAILING_PERIODS:]]
    return from_nano(nano_of(total(newest)) // len(newest)) if newest else Decimal(0)


def reasons(lines: Iterable[Line], trailing: Decimal) -> tuple[str, ...]:
    """The bounds that the difference of one period passes."""
    each = list(lines)
    found = []
    if any(line.before and line.after and _out_of_proportion(line.before, line.after) for line in each):
        found.append(RATIO)
    change = abs(total(Decimal(line.amount) for line in each))
    if change > max(SMALL, abs(trailing) * TRAILING_SHARE):
        found.append(AVERAGE)
    return tuple(sorted(found))


def _out_of_proportion(before: Charge, after: Charge) -> bool:
    """True where a unit costs more than `PRICE_RATIO` times what it cost, or less than that part of it.

    Amounts are compared crosswise: dividing them by their quantities would round.
    """
    if not Decimal(before.quantity) or not Decimal(after.quantity):
        return False  # no unit, no price of one: the average judges it
    was = EXACT.multiply(Decimal(before.amount_unrounded), Decimal(after.quantity))
    is_now = EXACT.multiply(Decimal(after.amount_unrounded), Decimal(before.quantity))
    small, large = sorted((abs(was), abs(is_now)))
    return large > EXACT.multiply(small, PRICE_RATIO)
