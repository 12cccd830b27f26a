"""How a price makes an amount of a quantity: one small class a model, and the two promises every model
can carry, an included quantity and a minimum.

    flat        quantity × unit_price / per
    graduated   each tier's part of the quantity at that tier's price
    volume      the whole quantity at the price of the tier it lies in
    package     whole packages of `per` units, each unit_price
    included    so many units of each service period cost nothing; what is more goes to the model
    minimum     what a service period costs at least; the rest to it is trued up

Worked: 16 units. Graduated up to 15 at 10, then 5: 15 × 10 + 1 × 5 = 155. Volume with the same tiers:
16 × 5 = 80, where 15 units cost 150. Packages of 10 at 3: 2 × 3 = 6. Flat at 2 with 6 included:
6 × 0 + 10 × 2 = 20; with a minimum of 25 also 5 trued up.

To add a model, add a class and its entry in `MODELS`; `core/prices/file.py` reads its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final, Literal, Protocol

from core.decimals import EXACT, total
from core.prices.book import Price, PriceError, Tier

What = Literal["usage", "tier", "fee", "packages", "included", "minimum"]

ZERO: Final = Decimal(0)
_ONE: Final = Decimal(1)


@dataclass(frozen=True, slots=True)
class Part:
    """One addend of an amount: `quantity` × `unit_price` / `per`, exactly.

    `share` is its part of the rounded line, given out by largest remainder: shares add up to the line.
    """

    what: What
    quantity: Decimal
    unit_price: Decimal
    per: int = 1
    after: Decimal | None = None
    """Of a tier: the quantity it begins behind, and the one it ends with (None: without end)."""
    up_to: Decimal | None = None
    share: Decimal = ZERO

    @property
    def amount(self) -> Decimal:
        """Raises: decimal.Inexact, where no finite decimal holds it; the file's reader refuses such prices."""
        return EXACT.divide(EXACT.multiply(self.quantity, self.unit_price), Decimal(self.per))


class Model(Protocol):
    """What a price's `model` names."""

    additive: bool
    """A period costs what its parts cost: quantities need no accumulation, one line a price."""
    monotone: bool
    """More usage never costs less."""
    tiered: bool

    def parts(self, price: Price, quantity: Decimal) -> list[Part]:
        """Addends of a quantity of one service period; a negative one lies in the first tier."""


class Flat:
    additive, monotone, tiered = True, True, False

    def parts(self, price: Price, quantity: Decimal) -> list[Part]:
        return [Part("usage", quantity, price.unit_price, price.per)]


class Graduated:
    additive, monotone, tiered = False, True, True

    def parts(self, price: Price, quantity: Decimal) -> list[Part]:
        found, after = list[Part](), ZERO
        for tier in price.tiers:
            if found and quantity <= after:
                break
            end = quantity if tier.up_to is None else min(quantity, tier.up_to)
            found += _tier(price, tier, EXACT.subtract(end, after), after)
            after = end
        if quantity > after:
            raise _ends(price)
        return found


class Volume:
    additive, monotone, tiered = False, False, True

    def parts(self, price: Price, quantity: Decimal) -> list[Part]:
        after = ZERO
        for tier in price.tiers:
            if tier.up_to is None or quantity <= tier.up_to:
                return _tier(price, tier, quantity, after)
            after = tier.up_to
        raise _ends(price)


class Package:
    additive, monotone, tiered = False, True, False

    def parts(self, price: Price, quantity: Decimal) -> list[Part]:
        size = Decimal(price.per)
        whole, rest = EXACT.divmod(quantity, size)
        begun = EXACT.add(whole, _ONE) if rest > 0 else whole
        return [Part("packages", EXACT.multiply(begun, size), price.unit_price, price.per)]


MODELS: Final[Mapping[str, Model]] = MappingProxyType(
    {"flat": Flat(), "graduated": Graduated(), "volume": Volume(), "package": Package()}
)


def model_of(price: Price) -> Model:
    """Raises: PriceError, for a model this version does not know."""
    try:
        return MODELS[price.model]
    except KeyError:
        raise PriceError(
            f"price {price.id} of {price.meter} has the model {price.model!r}; known: {', '.join(MODELS)}"
        ) from None


def is_additive(price: Price) -> bool:
    """True where it does not matter in which pieces a period is priced."""
    return model_of(price).additive and not price.included and not price.minimum


def parts(price: Price, quantity: Decimal, included: Decimal, minimum: Decimal) -> tuple[Part, ...]:
    """Addends of what a price charges for the quantity of one service period.

    Args:
        included, minimum: the price's, or less where it held for a part of the period only.

    Raises:
        PriceError: an unknown model, or tiers with an end.
        decimal.Inexact: see `Part.amount`.
    """
    found = list[Part]()
    free = min(max(quantity, ZERO), included)
    if free:
        found.append(Part("included", free, ZERO, price.per))
    rest = EXACT.subtract(quantity, free)
    if rest or not found:
        found += model_of(price).parts(price, rest)
    missing = EXACT.subtract(minimum, total(part.amount for part in found))
    if missing > 0 and minimum:
        found.append(Part("minimum", _ONE, missing))
    return tuple(found)


def _tier(price: Price, tier: Tier, quantity: Decimal, after: Decimal) -> list[Part]:
    found = [Part("tier", quantity, tier.unit_price, price.per, after, tier.up_to)]
    if tier.fee and quantity > 0:
        found.append(Part("fee", _ONE, tier.fee, 1, after, tier.up_to))
    return found


def _ends(price: Price) -> PriceError:
    return PriceError(f"the last tier of price {price.id} of {price.meter} ends; leave its `up_to` out")
