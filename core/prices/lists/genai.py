"""The list of pydantic/genai-prices (`prices/data.json`, its first and frozen format).

[{"id": "anthropic", "models": [{"id": "claude-…", "match": {"starts_with": "claude-…"},
   "prices": {"input_mtok": 3, "output_mtok": {"base": 15, "tiers": [{"start": 200000, "price": 22.5}]}}}]}]

`prices` may be a list of conditional ones, of which the last that holds counts: a `start_date` becomes
the date a row is valid from; an hour of the day cannot be said in the book and the entry is refused.
Names are matched as the list says (`match`, `fallback_model_providers`), case aside, first model first.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from core.prices.book import PriceError
from core.prices.lists.entries import Classes, Entry, Listed, Names, PriceList, Refused, Tiered, tiered

_CLASSES: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "output_mtok": "output",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cached_audio",
    "output_audio_mtok": "output_audio",
}
_CLAUSES: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "equals": operator.eq,
    "starts_with": str.startswith,
    "ends_with": str.endswith,
    "contains": operator.contains,
}
_REQUESTS: Final = "requests_kcount"


def read(document: Any) -> PriceList:
    """Read a decoded list.

    Raises:
        KeyError, TypeError, AttributeError: it has another shape.
    """
    entries, refused, left_out = dict[Names, Entry](), list[Refused](), Counter[str]()
    providers = {provider["id"]: provider for provider in document}
    for provider in document:
        for model in provider["models"]:
            names = (provider["id"], model["id"])
            problems = list[str]()
            try:
                entries[names] = Entry(*names, tuple(_prices(model["prices"], left_out, problems)))
            except PriceError as error:
                problems.append(str(error))
            refused += [Refused(*names, problem) for problem in problems]

    def resolve(provider: str, model: str) -> Entry | None:
        found = _provider(document, provider.lower())
        names = _model(providers, found, model.lower()) if found else None
        return entries.get(names) if names else None

    return PriceList(entries, tuple(refused), left_out, resolve)


def matches(clause: Mapping[str, Any], text: str) -> bool:
    """True where a lower-case name satisfies a clause of the list.

    Raises:
        KeyError: a clause of a kind this reader does not know.
    """
    ((kind, wanted),) = clause.items()
    if kind in ("or", "and"):
        return (any if kind == "or" else all)(matches(one, text) for one in wanted)
    if kind == "regex":
        return re.search(wanted, text) is not None
    return _CLAUSES[kind](text, wanted.lower())


def _provider(document: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """Id of the provider that a configured name means. A model's maker is not asked: who serves a model
    makes its price."""
    if any(one["id"] == name for one in document):
        return name
    return next(
        (one["id"] for one in document if "provider_match" in one and matches(one["provider_match"], name)),
        None,
    )


def _model(providers: Mapping[str, Mapping[str, Any]], provider: str, model: str) -> Names | None:
    for name in (provider, *providers[provider].get("fallback_model_providers", ())):
        for one in providers[name]["models"] if name in providers else ():
            if matches(one["match"], model):
                return name, one["id"]
    return None


def _prices(prices: Any, left_out: Counter[str], problems: list[str]) -> list[Listed]:
    dated = list[tuple[datetime | None, Mapping[str, Any]]]()
    for conditional in prices if isinstance(prices, list) else [{"prices": prices}]:
        constraint = conditional.get("constraint") or {}
        if set(constraint) - {"start_date"}:
            raise PriceError(
                "its price depends on the time of day; usage is kept by the hour and the book knows dates"
            )
        start = constraint.get("start_date")
        dated.append(
            (datetime.fromisoformat(start).replace(tzinfo=UTC) if start else None, conditional["prices"])
        )
    found = list[Listed]()
    for (since, values), until in zip(dated, [*(start for start, _ in dated[1:]), None], strict=True):
        classes = Classes()
        for key, value in values.items():
            if key in _CLASSES:
                setattr(classes, _CLASSES[key], _tiered(value))
            elif key == _REQUESTS:
                classes.thousand_requests = value
            else:
                left_out[key] += 1
        # The list does not say which models embed; they are among those without a price for output.
        found += classes.listed(problems, embeds=classes.output is None, since=since, until=until)
    return found


def _tiered(value: Any) -> Tiered:
    if isinstance(value, Decimal):
        return Tiered(value)
    return tiered(value["base"], ((int(tier["start"]), tier["price"]) for tier in value["tiers"]))
