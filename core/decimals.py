"""Decimal text and exact integers: quantities and money never pass through a float (law 6).

Quantities have at most nine digits behind the point, so inside the platform they may travel as whole
*nano units* (`2.5` is 2,500,000,000): integers add exactly and fast.
"""

from collections.abc import Iterable
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

EXACT: Final = Context(prec=250, traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic that raises instead of rounding."""

NANO_DIGITS: Final = 9
_NANO: Final = 10**NANO_DIGITS


def total(values: Iterable[Decimal]) -> Decimal:
    """The exact sum; `sum()` would round to 28 digits."""
    added = Decimal(0)
    for value in values:
        added = EXACT.add(added, value)
    return added


def canonical(value: Decimal) -> str:
    """The one text of a number: no exponent, no needless zeros, no minus before zero.

    Raises:
        ValueError: for NaN and infinities.
    """
    if not value.is_finite():
        raise ValueError("NaN and infinity are no quantities")
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def nano(text: str) -> int:
    """Nano units of a plain, not negative decimal text such as `12.5` (the contract's `quantity`)."""
    whole, _, fraction = text.partition(".")
    return int(whole) * _NANO + (int(fraction.ljust(NANO_DIGITS, "0")) if fraction else 0)


def nano_of(value: Decimal) -> int:
    """Nano units of a `numeric(…, 9)`.

    Raises:
        decimal.Inexact: where the value has more than nine digits behind the point.
    """
    return int(EXACT.to_integral_exact(EXACT.scaleb(value, NANO_DIGITS)))


def from_nano(units: int) -> Decimal:
    """The number that so many nano units are."""
    return EXACT.scaleb(Decimal(units), -NANO_DIGITS)
