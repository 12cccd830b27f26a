"""What an event adds to its cell, and what the events of a cell are together.

Sum, count and weighted sum make a quantity of each event, and cells hold their sums. For the others a cell
is a set of *elements*, each with how many events stand for it: the value of a maximum or a minimum, the
time and identity of a latest value, the counted value of a unique count. Events are counted by element, a
void takes one out, and an element without events is not there: so late events, voids and repeated work are
additions like those of sums, in any order, and a cell, a day, a month or a meter as a whole is computed
from the union of their elements, never from values of parts.

    max            element 000000000000000012.500000000                                12.5
    min            the same; the smallest stands
    latest         element 2026-06-01T12:00:00.000000Z 5f1c…                           quantity of that event
    unique_count   element usr_17                                                      how many there are

Elements order as text (by code point) as what they stand for orders.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from core.decimals import NANO_DIGITS, nano
from core.meters import Aggregation, Meter

ONE: Final = 10**NANO_DIGITS
"""Nano units of 1."""
_DIGITS: Final = 18
"""Before the point, of the largest quantity."""
TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}", re.ASCII)
"""What can be counted once: an id or a hash. No text, no address: it is kept for years (law 10)."""
WEIGHT: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,9})?", re.ASCII)


def grouped(meter: Meter, dimensions: Mapping[str, str]) -> dict[str, str]:
    """The dimensions that the event's cell has."""
    return {name: value for name, value in dimensions.items() if name != meter.measured}


def units(meter: Meter, quantity: str, dimensions: Mapping[str, str]) -> int:
    """Nano units that an event adds up to; of an element those of its own quantity.

    Raises:
        ValueError: a product that needs more than 18 digits before or 9 behind the point.
    """
    if meter.aggregation is Aggregation.COUNT:
        return ONE
    if meter.aggregation is not Aggregation.WEIGHTED_SUM:
        return nano(quantity)
    product, rest = divmod(nano(quantity) * nano(dimensions[meter.measured]), ONE)
    if rest or product >= 10 ** (_DIGITS + NANO_DIGITS):
        raise ValueError("the weighted quantity needs more digits than a quantity has")
    return product


def element(
    meter: Meter, quantity: str, dimensions: Mapping[str, str], time: datetime, identity: bytes
) -> str:
    """What an event stands for in its cell; empty where quantities are added up."""
    match meter.aggregation:
        case Aggregation.MAX | Aggregation.MIN:
            whole, _, fraction = quantity.partition(".")
            return f"{whole:0>{_DIGITS}}.{fraction:0<{NANO_DIGITS}}"
        case Aggregation.LATEST:
            return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {identity.hex()}"
        case Aggregation.UNIQUE_COUNT:
            return dimensions[meter.measured]
        case _:
            return ""


def element_value(aggregation: Aggregation, text: str, quantity: Decimal) -> Decimal:
    """What an element is worth, from its text or the quantity of the event it stands for."""
    if aggregation is Aggregation.UNIQUE_COUNT:
        return Decimal(1)
    return quantity if aggregation is Aggregation.LATEST else Decimal(text)


def combined(aggregation: Aggregation, elements: Mapping[str, Decimal]) -> Decimal:
    """The value of elements together, each with what it is worth; 0 for none."""
    if not elements or aggregation is Aggregation.UNIQUE_COUNT:
        return Decimal(len(elements))
    chosen = min(elements) if aggregation is Aggregation.MIN else max(elements)
    return elements[chosen]
