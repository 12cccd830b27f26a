"""What every format of price list is read into, and the rules that hold for all of them.

Units: US dollars for a million tokens, or for a thousand requests. A class of tokens that a list has
no price for costs what contains it: cached input costs as input, audio as text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from typing import Final

from core.prices.book import PriceError
from core.tokens import BOUNDS, CACHE_WRITE, CACHED, EMBEDDED, INPUT, OUTPUT, REQUESTS, context

CURRENCY: Final = "USD"
MILLION: Final = 1_000_000
CEILING: Final = Decimal(1000)
"""Dollars for a million tokens that no model has ever cost: a list whose unit slipped (cents, prices of a
thousand tokens) shows itself above it. The dearest real one was 600."""

_DIGITS: Final = 12
"""Digits behind the point that the book keeps."""
_FLOAT: Final = Context(prec=15)
"""Digits that every double keeps; what a list prints beyond them (8.000000000000001E-7) is the noise of
the program that computed it, not its price."""

Names = tuple[str, str]
"""Provider and model."""


@dataclass(frozen=True, slots=True)
class Tiered:
    """A price, and the higher ones of requests above a bound, for every token of the request."""

    base: Decimal
    above: tuple[tuple[int, Decimal], ...] = ()
    """Ascending."""

    def at(self, bound: int) -> Decimal:
        """The price of a request above `bound`."""
        return next((price for start, price in reversed(self.above) if start <= bound), self.base)


@dataclass(frozen=True, slots=True)
class Listed:
    """One price of an entry. `dimensions` are those beside provider and model."""

    meter: str
    dimensions: tuple[tuple[str, str], ...]
    unit_price: Decimal
    per: int
    since: datetime | None = None
    """None: whenever the book begins."""
    until: datetime | None = None
    """Where the list knows that another set of prices follows."""


@dataclass(frozen=True, slots=True)
class Entry:
    provider: str
    model: str
    prices: tuple[Listed, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry, or a part of it, that the book cannot say exactly."""

    provider: str
    model: str
    reason: str


Resolver = Callable[[str, str], Entry | None]


@dataclass(frozen=True, slots=True)
class PriceList:
    """A list as read. `left_out` counts prices of kinds that no meter counts, by their name in the list."""

    entries: Mapping[Names, Entry]
    refused: tuple[Refused, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    resolve: Resolver = lambda provider, model: None
    """The entry for a provider and a model as replies name them (dates, prefixes); None where there is none."""
    sha256: str = ""
    """Of the file."""


@dataclass(slots=True)
class Classes:
    """The prices of one entry by class of token, in dollars for a million; None where the list has none."""

    input: Tiered | None = None
    cached: Tiered | None = None
    cache_write: Tiered | None = None
    output: Tiered | None = None
    input_audio: Tiered | None = None
    cached_audio: Tiered | None = None
    output_audio: Tiered | None = None
    thousand_requests: Decimal | None = None
    withheld: set[str] = field(default_factory=set)
    """Classes whose price the list has and the book cannot say: they get no row, not that of another."""

    def listed(
        self,
        problems: list[str],
        *,
        embeds: bool,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Listed]:
        """The prices as rows that hold from `since` until `until`.

        Args:
            problems: what could not be taken is added here.
            embeds: the entry is, or may be, of a model that embeds.
        """
        wanted = [
            ("input", INPUT, "", self.input),
            ("cached", CACHED, "", self.cached or self.input),
            ("cache_write", CACHE_WRITE, "", self.cache_write or self.input),
            ("output", OUTPUT, "", self.output),
            ("input_audio", INPUT, "audio", self.input_audio),
            (
                "cached_audio",
                CACHED,
                "audio",
                self.cached_audio or (None if self.cached else self.input_audio),
            ),
            ("output_audio", OUTPUT, "audio", self.output_audio),
            ("input", EMBEDDED, "", self.input if embeds else None),
        ]
        found = list[Listed]()
        for name, meter, modality, price in wanted:
            if price is None or name in self.withheld:
                continue
            # A row that names the modality must name the context too: with one dimension each, neither
            # would say more than the other.
            tiered = price.above or (modality and any(p.above for _, m, _, p in wanted if m == meter and p))
            own = (("modality", modality),) if modality else ()
            rows = [(own, price.base)] + [
                ((("context", context(bound)), *own), price.at(bound))
                for bound in (BOUNDS if tiered else ())
                if modality or price.at(bound) != price.base
            ]
            try:
                found += [Listed(meter, dims, _exact(value), MILLION, since, until) for dims, value in rows]
            except PriceError as error:
                problems.append(f"{name}: {error}")
        if self.thousand_requests is not None:
            try:
                found.append(Listed(REQUESTS, (), _exact(self.thousand_requests), 1000, since, until))
            except PriceError as error:
                problems.append(f"requests: {error}")
        return found


def tiered(base: Decimal, above: Iterable[tuple[int, Decimal]]) -> Tiered:
    """Raises: PriceError, for a bound that usage does not carry."""
    ordered = tuple(sorted(above))
    unknown = [start for start, _ in ordered if start not in BOUNDS]
    if unknown:
        raise PriceError(
            f"a tier begins above {unknown[0]} input tokens; usage carries {', '.join(map(str, BOUNDS))}"
        )
    return Tiered(base, ordered)


def _exact(value: Decimal) -> Decimal:
    if value < 0:
        raise PriceError(f"{value} is below zero")
    kept = _FLOAT.plus(value).normalize()
    if -int(kept.as_tuple().exponent) > _DIGITS:
        raise PriceError(f"{value} has more than {_DIGITS} digits behind the point")
    return kept
