"""Numbers as files write them, as the decimal text that an event carries. Exact but for one named rounding."""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from core.decimals import EXACT, NANO_DIGITS, canonical

_EXPONENT: Final = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?[eE][+-]?\d{1,2}", re.ASCII)
_LONG: Final = re.compile(rf"(?:0|[1-9]\d{{0,17}})\.\d{{{NANO_DIGITS + 1},100}}", re.ASCII)
_UNIT: Final = Decimal(1).scaleb(-NANO_DIGITS)
_WIDE: Final = Context(prec=EXACT.prec, rounding=ROUND_HALF_EVEN)


def plain(text: str) -> str:
    """`2.5e-05` as `0.000025`, exactly; anything else, and what is too long to be a quantity, as it stands."""
    return canonical(Decimal(text)) if _EXPONENT.fullmatch(text) else text


def quantity(text: str, *, rounds: bool) -> tuple[str, bool]:
    """The decimal text of a cell, and whether it was rounded; whether it is a quantity at all, the contract says.

    Args:
        rounds: round to nine digits behind the point, half to even, and write exponents out.

    Raises:
        ValueError: it has more digits behind the point than are kept, and is not to be rounded.
    """
    text = plain(text.strip()) if rounds else text.strip()
    if _LONG.fullmatch(text) is None:
        return text, False
    if not rounds:
        digits = len(text.partition(".")[2])
        raise ValueError(
            f"has {digits} digits behind the point, at most {NANO_DIGITS} are kept; --round-quantities rounds to them"
        )
    exact = Decimal(text)
    rounded = exact.quantize(_UNIT, context=_WIDE)
    return canonical(rounded), rounded != exact
