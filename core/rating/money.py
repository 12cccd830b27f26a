"""The platform's only rounding: a line to its currency's smallest unit, and what is divided by it."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final

from core.decimals import EXACT

POLICY: Final = "line-half-up"
"""Each line to the currency's smallest unit, halves away from zero: the commercial rounding that
invoices and tax rules use. Half-even, the statisticians' choice, would turn 0.125 into 0.12."""

_ROUND: Final = Context(prec=250, rounding=ROUND_HALF_UP)
_MINOR_DIGITS: Final = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"), 0),
    **dict.fromkeys(("RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
"""ISO 4217: digits of the smallest unit where they are not two."""


def minor_digits(currency: str) -> int:
    """Digits behind the point of a currency's smallest unit: 2, or 0, or 3."""
    return _MINOR_DIGITS.get(currency, 2)


def round_amount(value: Decimal, currency: str) -> Decimal:
    """`value` to the currency's smallest unit, by `POLICY`; the only rounding of the platform."""
    return value.quantize(Decimal(1).scaleb(-minor_digits(currency)), context=_ROUND)


def allocate(amount: Decimal, weights: Sequence[Decimal], currency: str) -> list[Decimal]:
    """Divide a rounded amount by weights into whole smallest units that add up to it.

    Largest remainder (Hamilton's method): everybody gets his share rounded towards zero, and what is
    left goes, a unit each, to the largest parts cut off, the earlier first where they are equal.
    Without any weight all shares are equal.

    Example: 10.00 USD by 1, 1, 1 is 3.34, 3.33, 3.33.

    Raises:
        ValueError: an amount that is not rounded, no weights, or weights of both signs.
        decimal.InvalidOperation: a weight that is no number.
    """
    units = EXACT.scaleb(amount, minor_digits(currency))
    if units != units.to_integral_value():
        raise ValueError(f"{amount} {currency} is not rounded to the smallest unit; round the line first")
    if not weights or (min(weights) < 0 < max(weights)):
        raise ValueError("an amount is divided by one or more weights that are all >= 0 or all <= 0")
    # As whole numbers of one common power of ten: nothing is lost and divmod is exact.
    scale = max(0, *(-_exponent(weight) for weight in weights))
    whole = [abs(int(EXACT.scaleb(weight, scale))) for weight in weights]
    together = sum(whole)  # integers
    if together == 0:
        whole, together = [1] * len(whole), len(whole)
    sign, rest = (-1 if units < 0 else 1), abs(int(units))
    pairs = [divmod(rest * weight, together) for weight in whole]
    left = rest - sum(share for share, _ in pairs)  # integers
    by_remainder = sorted(range(len(pairs)), key=lambda index: -pairs[index][1])
    lucky = set(by_remainder[:left])
    digits = minor_digits(currency)
    return [
        EXACT.scaleb(Decimal(sign * (share + (index in lucky))), -digits)
        for index, (share, _) in enumerate(pairs)
    ]


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is no weight")
    return exponent
