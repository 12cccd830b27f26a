"""The price book: what a unit of a meter costs, for whom, from when, as far as it was known.

The table `price` is append-only and bitemporal: `valid_from`/`valid_to` say when a price holds,
`revision`/`recorded_at` since when we know it. Three questions decide which row prices a piece of
usage, in this order: is it the tenant's own row or the list price (`*`); which row names more of the
usage's dimensions; which holds from the later date. Two rows for the same (tenant, meter, dimensions,
valid_from) are a price and its correction: the higher `revision` stands.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Final

EVERYBODY: Final = "*"
"""Tenant of a list price."""
FLAT: Final = "flat"

Key = tuple[str, str, tuple[tuple[str, str], ...], datetime]
Terms = tuple[Decimal, int, str, datetime | None, str, "tuple[Tier, ...]", Decimal, Decimal]


class PriceError(Exception):
    """A price that cannot be used; the message says which and what to change."""


@dataclass(frozen=True, slots=True)
class Tier:
    """The part of a quantity behind the tier before and up to `up_to`, which belongs to it."""

    up_to: Decimal | None
    """None: without end; only the last tier."""
    unit_price: Decimal
    """For each `per` units of the price."""
    fee: Decimal = Decimal(0)
    """Charged once where the tier is reached."""


@dataclass(frozen=True, slots=True)
class Price:
    """What usage from `valid_from` until `valid_to` costs, by one of the models in `core/prices/models.py`.

    `flat`: `unit_price` of `currency` for each `per` units.
    """

    tenant: str
    meter: str
    dimensions: tuple[tuple[str, str], ...]
    """Sorted. The row prices usage that has all of these; empty means any."""
    unit_price: Decimal
    """Of the first tier where there are tiers; of a whole package where packages are sold."""
    per: int
    currency: str
    valid_from: datetime
    valid_to: datetime | None = None
    revision: int = 0
    """Order in which the rows were recorded; 0 for one that only stands in a file."""
    id: str = ""
    """Id of its row; empty for one that only stands in a file."""
    model: str = FLAT
    tiers: tuple[Tier, ...] = ()
    """Ascending, the last without end; only where the model has tiers."""
    included: Decimal = Decimal(0)
    """Units of each service period that cost nothing."""
    minimum: Decimal = Decimal(0)
    """Of `currency`: what a service period costs at least."""
    recorded_at: datetime | None = None
    """None for one that only stands in a file."""

    @property
    def key(self) -> Key:
        """What two rows must share for the later one to be a correction of the earlier."""
        return (self.tenant, self.meter, self.dimensions, self.valid_from)

    @property
    def terms(self) -> Terms:
        """What a correction changes."""
        return (
            self.unit_price, self.per, self.currency, self.valid_to,
            self.model, self.tiers, self.included, self.minimum,
        )  # fmt: skip

    def covers(self, dimensions: Mapping[str, str], at: datetime) -> bool:
        """True where usage of this meter with these dimensions at that time falls under this price."""
        return self.holds(at) and all(dimensions.get(name) == value for name, value in self.dimensions)

    def holds(self, at: datetime) -> bool:
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)


def in_force(prices: Iterable[Price]) -> list[Price]:
    """Only the rows that no correction has replaced, in a stable order."""
    latest: dict[Key, Price] = {}
    for price in prices:
        known = latest.get(price.key)
        if known is None or price.revision > known.revision:
            latest[price.key] = price
    return [latest[key] for key in sorted(latest)]


class _Rows:
    """Rows of one owner, found by meter and dimensions."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self.recorded = tuple(prices)
        self.standing = tuple(in_force(self.recorded))
        # By the dimensions' names, then by their values: an imported list has thousands of models, and
        # usage of one must not walk past all others.
        found: dict[str, dict[tuple[str, ...], dict[tuple[str | None, ...], list[Price]]]] = {}
        for price in self.standing:
            names, values = tuple(n for n, _ in price.dimensions), tuple(v for _, v in price.dimensions)
            found.setdefault(price.meter, {}).setdefault(names, {}).setdefault(values, []).append(price)
        self._by_meter = MappingProxyType(found)
        ends = {row.valid_to for row in self.standing if row.valid_to}
        self.edges = frozenset({row.valid_from for row in self.standing} | ends)
        self.revision = max((price.revision for price in self.recorded), default=0)

    def find(self, meter: str, dimensions: Mapping[str, str], at: datetime) -> Price | None:
        best: Price | None = None
        for names, by_values in self._by_meter.get(meter, {}).items():
            for price in by_values.get(tuple(dimensions.get(name) for name in names), ()):
                # Last: rows that cannot be ordered by meaning still have one order everywhere.
                if price.holds(at) and (
                    best is None or (_rank(price), best.dimensions) > (_rank(best), price.dimensions)
                ):
                    best = price
        return best


class PriceBook:
    """The prices one tenant's usage falls under."""

    def __init__(self, tenant: str, prices: Iterable[Price], *, listed: "PriceBook | None" = None) -> None:
        """
        Args:
            prices: may be the whole book; rows of other tenants are left aside.
            listed: a book whose list prices are taken instead of those in `prices`: thousands of rows are
                put in order once for all tenants.
        """
        rows = tuple(prices)
        self.tenant = tenant
        self._own = _Rows(price for price in rows if price.tenant == tenant != EVERYBODY)
        self._listed: _Rows = listed._listed if listed else _Rows(p for p in rows if p.tenant == EVERYBODY)
        self.committed: Final = tuple(price for price in self._own.standing if price.minimum)
        """Rows with a minimum, which is due without usage too."""

    @property
    def revision(self) -> int:
        """The last revision in it, which names its state: rows are only ever added."""
        return max(self._own.revision, self._listed.revision)

    @property
    def prices(self) -> tuple[Price, ...]:
        """Rows that no correction has replaced."""
        return (*self._listed.standing, *self._own.standing)

    @property
    def recorded(self) -> tuple[Price, ...]:
        """Every row, corrected ones too."""
        return (*self._listed.recorded, *self._own.recorded)

    def as_of(self, revision: int) -> "PriceBook":
        """The book as it was known when `revision` was its last: what was rated then is rated again to
        the same cent, whatever was corrected since."""
        if revision >= self.revision:
            return self
        return PriceBook(self.tenant, (price for price in self.recorded if price.revision <= revision))

    def find(self, meter: str, dimensions: Mapping[str, str], at: datetime) -> Price | None:
        """The price of usage in the hour that starts `at`; None where the book has none."""
        return self._own.find(meter, dimensions, at) or self._listed.find(meter, dimensions, at)

    def edges(self) -> list[datetime]:
        """Every instant at which some price begins or ends, ascending."""
        return sorted(self._own.edges | self._listed.edges)


def books(prices: Iterable[Price]) -> Callable[[str], PriceBook]:
    """The book of each tenant out of the whole book, whose list prices are put in order once."""
    by_tenant: dict[str, list[Price]] = {}
    for price in prices:
        by_tenant.setdefault(price.tenant, []).append(price)
    listed = PriceBook(EVERYBODY, by_tenant.get(EVERYBODY, ()))
    return lambda tenant: PriceBook(tenant, by_tenant.get(tenant, ()), listed=listed)


def _rank(price: Price) -> tuple[int, datetime]:
    return (len(price.dimensions), price.valid_from)
