"""`deploy/prices.toml`: the price book as people write and review it.

currency = "USD"

[[price]]
meter = "llm.tokens.input"
unit_price = "2.50"
per = 1_000_000
valid_from = 2020-01-01T00:00:00Z
# tenant = "org_…"             only for this tenant; everybody where absent
# dimensions = { model = "m" } only for usage with these; any where absent
# valid_to = 2027-01-01T00:00:00Z
# included = 1000              units of each service period that cost nothing
# minimum = "50.00"            what a service period costs at least; only with `tenant`

[[price]]
meter = "api.requests"
model = "graduated"            # or "volume", with tiers; or "package", whole packages of `per` units
per = 1000
valid_from = 2026-01-01T00:00:00Z
tiers = [
    { up_to = 1_000_000, unit_price = "0.40" },
    { unit_price = "0.25", fee = "10.00" },
]

The models, with a worked example each: `core/prices/models.py`. A service period is the calendar month
(UTC) unless an invoice gives its own.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from core.meters import METERS
from core.prices.book import EVERYBODY, FLAT, Price, PriceError, Tier
from core.prices.models import MODELS

DEFAULT_FILE: Final = Path(__file__).parents[2] / "deploy" / "prices.toml"

_FIELDS: Final = frozenset(
    {"meter", "unit_price", "per", "valid_from", "valid_to", "tenant", "dimensions"}
    | {"model", "tiers", "included", "minimum"}
)
_MONEY: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,12})?", re.ASCII)
_QUANTITY: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?", re.ASCII)
_MAX_PER: Final = 10**12


def read_file(path: Path) -> list[Price]:
    """The prices declared in a file, checked.

    Raises:
        PriceError: naming file, entry and what to change. A book is taken whole or not at all.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PriceError(f"the price book {path} cannot be read: {error}") from error
    unknown = set(document) - {"currency", "price"}
    currency, entries = document.get("currency"), document.get("price", [])
    if unknown:
        raise PriceError(f"{path}: unknown {', '.join(sorted(unknown))}; known: currency, [[price]]")
    if not isinstance(currency, str) or re.fullmatch("[A-Z]{3}", currency) is None:
        raise PriceError(f'{path}: `currency` must be an ISO 4217 code such as "USD"')
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PriceError(f"{path}: prices are `[[price]]` tables")
    prices = []
    for number, entry in enumerate(entries, 1):
        try:
            prices.append(_price(entry, currency))
        except PriceError as error:
            raise PriceError(f"{path}: price {number} ({entry.get('meter', 'no meter')}): {error}") from None
    _check_together(path, prices)
    return prices


def _price(entry: Mapping[str, Any], currency: str) -> Price:
    unknown = set(entry) - _FIELDS
    if unknown:
        raise PriceError(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(_FIELDS))}")
    model, tiers = _model(entry)
    missing = {"meter", "per", "valid_from"} - set(entry)
    if missing:
        raise PriceError(f"{', '.join(sorted(missing))} is missing")
    meter = METERS.get(entry["meter"]) if isinstance(entry["meter"], str) else None
    if meter is None:
        raise PriceError(f"not a registered meter; known: {', '.join(sorted(METERS))}")
    unit_price = tiers[0].unit_price if tiers else _money(entry["unit_price"], "unit_price")
    tenant = entry.get("tenant", EVERYBODY)
    if not isinstance(tenant, str) or not (tenant == EVERYBODY or tenant.startswith("org_")):
        raise PriceError("`tenant` must be an organisation's id (`org_…`); leave it out for everybody")
    dimensions = entry.get("dimensions", {})
    if not isinstance(dimensions, dict) or not all(isinstance(value, str) for value in dimensions.values()):
        raise PriceError("`dimensions` must be a table of text")
    if not meter.groups.issuperset(dimensions):
        raise PriceError(f"this meter has the dimensions {', '.join(sorted(meter.groups)) or 'none'}")
    valid_from = _hour(entry["valid_from"], "valid_from")
    valid_to = _hour(entry["valid_to"], "valid_to") if "valid_to" in entry else None
    if valid_to is not None and valid_to <= valid_from:
        raise PriceError("`valid_to` must lie after `valid_from`")
    included = _quantity(entry["included"], "included") if "included" in entry else Decimal(0)
    minimum = _money(entry["minimum"], "minimum") if "minimum" in entry else Decimal(0)
    if minimum and tenant == EVERYBODY:
        raise PriceError(
            "`minimum` is what one organisation has committed to; name it in `tenant`: for everybody it "
            "would charge organisations that never used the meter"
        )
    return Price(
        tenant, meter.name, tuple(sorted(dimensions.items())), unit_price, _per(entry["per"], model), currency,
        valid_from, valid_to, model=model, tiers=tiers, included=included, minimum=minimum,
    )  # fmt: skip


def _model(entry: Mapping[str, Any]) -> tuple[str, tuple[Tier, ...]]:
    name = entry.get("model", FLAT)
    if not isinstance(name, str) or name not in MODELS:
        raise PriceError(f"`model` must be one of {', '.join(MODELS)}")
    tiered = MODELS[name].tiered
    wanted, refused = ("tiers", "unit_price") if tiered else ("unit_price", "tiers")
    if wanted not in entry or refused in entry:
        raise PriceError(
            f"a {name} price has {'`tiers` with a `unit_price` each' if tiered else '`unit_price`, no `tiers`'}"
        )
    return name, _tiers(entry["tiers"]) if tiered else ()


def _per(value: object, model: str) -> int:
    if type(value) is not int or not 0 < value <= _MAX_PER:
        raise PriceError("`per` must be a whole number from 1 to 10^12")
    if model != "package" and not _divides_exactly(value):
        raise PriceError(
            "`per` must be a whole number that divides exactly (1, 1000, 1024, 1_000_000, …): "
            "with another, such as 60, an amount would have to be rounded before the line"
        )
    return value


def _tiers(entries: object) -> tuple[Tier, ...]:
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise PriceError(
            '`tiers` must be a list such as [{ up_to = 1000, unit_price = "2" }, { unit_price = "1" }]'
        )
    found = list[Tier]()
    for number, entry in enumerate(entries, 1):
        where = f"tier {number}: "
        unknown = set(entry) - {"up_to", "unit_price", "fee"}
        if unknown:
            raise PriceError(f"{where}unknown {', '.join(sorted(unknown))}; known: up_to, unit_price, fee")
        if "unit_price" not in entry:
            raise PriceError(f"{where}`unit_price` is missing")
        if ("up_to" in entry) == (number == len(entries)):
            raise PriceError(f"{where}every tier but the last has `up_to`; the last has no end")
        up_to = _quantity(entry["up_to"], "up_to", where) if "up_to" in entry else None
        if up_to is not None and up_to <= (found[-1].up_to if found and found[-1].up_to else 0):
            raise PriceError(f"{where}`up_to` must be larger than the tier's before, and than 0")
        fee = _money(entry["fee"], "fee", where) if "fee" in entry else Decimal(0)
        found.append(Tier(up_to, _money(entry["unit_price"], "unit_price", where), fee))
    return tuple(found)


def _money(value: object, name: str, where: str = "") -> Decimal:
    if not isinstance(value, str) or _MONEY.fullmatch(value) is None:
        raise PriceError(
            f'{where}`{name}` must be decimal text such as "2.50" (at most 12 digits behind the point)'
        )
    return Decimal(value)


def _quantity(value: object, name: str, where: str = "") -> Decimal:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or _QUANTITY.fullmatch(text) is None:
        raise PriceError(
            f'{where}`{name}` must be a whole number or decimal text such as "2.5" (at most 9 digits behind the point)'
        )
    return Decimal(text)


def _hour(value: object, name: str) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise PriceError(f"`{name}` must be a time with its zone, such as 2026-01-01T00:00:00Z")
    instant = value.astimezone(UTC)
    if instant.minute or instant.second or instant.microsecond:
        raise PriceError(f"`{name}` must be a full hour in UTC: usage is kept and priced by the hour")
    return instant


def _divides_exactly(per: int) -> bool:
    for prime in (2, 5):
        while per % prime == 0:
            per //= prime
    return per == 1


def _check_together(path: Path, prices: list[Price]) -> None:
    for one, other in combinations(prices, 2):
        if (one.tenant, one.meter) != (other.tenant, other.meter):
            continue
        if one.key == other.key:
            raise PriceError(
                f"{path}: {one.meter} has two prices from {one.valid_from.isoformat()}; keep one"
            )
        first, second = dict(one.dimensions), dict(other.dimensions)
        compatible = all(second.get(name, value) == value for name, value in first.items())
        if compatible and len(first) == len(second) and first != second:
            raise PriceError(
                f"{path}: {one.meter} with {first} and with {second} would both price usage that has all of "
                "these, and neither says more; name the same dimensions in both"
            )
