"""What a price list would change in the book: pure, shown before it is done.

A price the book does not know is valid from the beginning: usage that waited for it is priced. A changed
one holds from the hour of the import; usage before keeps its price. So does the first row of a model in use
that a more general row prices: what that usage costs changes. One that changes by more than `factor`, or
that no model has ever cost, is parked: listed and not taken, until a person names it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from core.decimals import EXACT
from core.prices.book import EVERYBODY, FLAT, Price, PriceBook
from core.prices.lists.entries import CEILING, CURRENCY, MILLION, Entry, Listed, Names, PriceList, Refused

ALWAYS: Final = datetime(2000, 1, 1, tzinfo=UTC)
FACTOR: Final = Decimal(3)


@dataclass(frozen=True, slots=True)
class Change:
    """One row that would be added. `before` is what it replaces, or the more general row that prices usage of it
    now; None where nothing does, or no usage names it."""

    price: Price
    before: Price | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    change: Change
    reason: str


@dataclass(slots=True)
class Plan:
    """`unknown` are names in use that the list has no entry for."""

    changes: list[Change] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    unchanged: int = 0
    unknown: list[Names] = field(default_factory=list)
    refused: Sequence[Refused] = ()

    @property
    def prices(self) -> list[Price]:
        return [change.price for change in self.changes]


def plan(
    found: PriceList,
    known: Iterable[Price],
    at: datetime,
    *,
    names: Iterable[Names] = (),
    only: Iterable[str] = (),
    accept: Iterable[str] = (),
    factor: Decimal = FACTOR,
) -> Plan:
    """Compare a list with the list prices of the book.

    Args:
        at: now; changes hold from its full hour (UTC).
        names: provider and model as usage names them; those that the list matches get rows of their own, which
            are held against what that usage costs now.
        only: `provider` or `provider/model`: nothing else is taken. Everything where it is empty.
        accept: `provider/model` whose changes are taken however large they are.
        factor: a change by more than this, up or down, or from or to 0, is parked.
    """
    made = Plan()
    wanted, accepted, used = set(only), set(accept), set(names)
    book = _Known(known, at.astimezone(UTC).replace(minute=0, second=0, microsecond=0))
    entries = dict(found.entries)
    for provider, model in sorted(used):
        entry = found.resolve(provider, model)
        if entry is None:
            made.unknown.append((provider, model))
        else:
            entries[provider, model] = Entry(provider, model, entry.prices)
    chosen = {
        key: entry
        for key, entry in entries.items()
        if not wanted or key[0] in wanted or "/".join(key) in wanted
    }
    for key in sorted(chosen):
        name = "/".join(key)
        for change in book.changes(chosen[key], used=key in used):
            if change is None:
                made.unchanged += 1
                continue
            reason = "" if name in accepted else _reason(change, factor)
            if reason:
                made.parked.append(Parked(change, reason))
            else:
                made.changes.append(change)
    made.refused = [
        one
        for one in found.refused
        if not wanted or one.provider in wanted or f"{one.provider}/{one.model}" in wanted
    ]
    return made


class _Known:
    """The list prices of the book by exact dimensions."""

    def __init__(self, known: Iterable[Price], hour: datetime) -> None:
        self._hour = hour
        self._book = PriceBook(EVERYBODY, known)
        self._rows: dict[tuple[str, tuple[tuple[str, str], ...]], list[Price]] = {}
        self._models: dict[Names, list[Price]] = {}
        for price in self._book.prices:
            self._rows.setdefault((price.meter, price.dimensions), []).append(price)
            of = dict(price.dimensions)
            if "provider" in of and "model" in of:
                self._models.setdefault((of["provider"], of["model"]), []).append(price)

    def changes(self, entry: Entry, *, used: bool) -> Iterable[Change | None]:
        """A change for each price of the entry that the book has not, None for each that it has.

        Args:
            used: usage names this provider and model.
        """
        listed = set[tuple[str, tuple[tuple[str, str], ...]]]()
        for one in entry.prices:
            price = _price(entry, one)
            listed.add((price.meter, price.dimensions))
            if (price.meter, price.dimensions) in self._rows:
                yield from self._changed(price)
            else:
                yield from self._first(price, used=used)
        for old in self._models.get((entry.provider, entry.model), ()):
            tier = "context" in dict(old.dimensions) and (old.meter, old.dimensions) not in listed
            if tier and old.holds(self._hour):  # the list has no such tier any more
                yield _until(old, max(self._hour, old.valid_from + timedelta(hours=1)))

    def _first(self, price: Price, *, used: bool) -> Iterable[Change]:
        """The book has no row of these dimensions, but what usage of them costs now may not jump unseen."""
        start = max(price.valid_from, self._hour)
        before = self._book.find(price.meter, dict(price.dimensions), start) if used else None
        if before is None:
            yield Change(price)
        elif price.valid_to is None or price.valid_to > start:
            yield Change(replace(price, valid_from=start), before)

    def _changed(self, price: Price) -> Iterable[Change | None]:
        """What is past stays as it was priced; only what holds now, or will, is compared."""
        if price.valid_to is not None and price.valid_to <= self._hour:
            return
        start = max(price.valid_from, self._hour)
        old = self._at(price, start)
        if old is None or _terms(old) != _terms(price):
            yield Change(replace(price, valid_from=start), old)
        elif price.valid_to is not None and old.valid_to != price.valid_to:
            yield _until(old, price.valid_to)
        else:
            yield None

    def _at(self, price: Price, at: datetime) -> Price | None:
        rows = [row for row in self._rows[price.meter, price.dimensions] if row.holds(at)]
        return max(rows, key=lambda row: row.valid_from, default=None)


def _terms(price: Price) -> tuple[object, ...]:
    return (price.unit_price, price.per, price.currency, price.model, price.included)


def _until(old: Price, end: datetime) -> Change:
    """A correction of a row that only ends it."""
    return Change(replace(old, valid_to=end, id="", revision=0, recorded_at=None), old)


def _price(entry: Entry, listed: Listed) -> Price:
    dimensions = {"provider": entry.provider, "model": entry.model, **dict(listed.dimensions)}
    return Price(
        tenant=EVERYBODY,
        meter=listed.meter,
        dimensions=tuple(sorted(dimensions.items())),
        unit_price=listed.unit_price,
        per=listed.per,
        currency=CURRENCY,
        valid_from=listed.since or ALWAYS,
        valid_to=listed.until,
    )


def _reason(change: Change, factor: Decimal) -> str:
    price, before = change.price, change.before
    if price.per == MILLION and price.unit_price > CEILING:
        return f"{price.unit_price:f} for a million is above {CEILING}: is its unit right?"
    if before is None:
        return ""
    if before.model != FLAT or before.included:
        return f"the book has a price of the model {before.model} here, not one of a list"
    if before.currency != price.currency:
        return f"the book has a price in {before.currency} here"
    old = EXACT.multiply(before.unit_price, price.per)
    new = EXACT.multiply(price.unit_price, before.per)
    low, high = sorted((old, new))
    if high > EXACT.multiply(low, factor):
        general = (
            "" if before.dimensions == price.dimensions else ", for usage that a more general row prices now"
        )
        return f"it changes by more than a factor of {factor}{general}"
    return ""
