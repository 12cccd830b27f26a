"""The list of BerriAI/litellm (`model_prices_and_context_window.json`).

{"sample_spec": {…},
 "azure/gpt-4o": {"litellm_provider": "azure", "mode": "chat", "input_cost_per_token": 2.5e-06,
   "cache_read_input_token_cost": 1.25e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05, …}}

Prices are dollars for one token. A name may carry its provider in front; `sample_spec` only describes.
Tiers are keys with `_above_200k_tokens`, or `tiered_pricing` with ranges of input tokens. Batch, flex and
priority prices, and units that no meter counts (images, seconds, pages), are counted and left out.
"""

import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from core.decimals import EXACT
from core.prices.book import PriceError
from core.prices.lists.entries import Classes, Entry, Names, PriceList, Refused, tiered

SAMPLE: Final = "sample_spec"
_CLASSES: Final = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_token": "output",
    "input_cost_per_audio_token": "input_audio",
    "cache_read_input_audio_token_cost": "cached_audio",
    "output_cost_per_audio_token": "output_audio",
}
_REQUEST: Final = "input_cost_per_request"
_ABOVE: Final = re.compile(r"(?P<name>\w+?)_above_(?P<thousands>[0-9]+)k_tokens", re.ASCII)
_MONEY: Final = re.compile(r"\w*(?:cost|price)\w*", re.ASCII)


def read(document: Any) -> PriceList:
    """Read a decoded list.

    Raises:
        KeyError, TypeError, AttributeError: it has another shape.
    """
    entries, refused, left_out = dict[Names, Entry](), list[Refused](), Counter[str]()
    twice = set[Names]()
    for name, values in document.items():
        if name == SAMPLE:
            continue
        provider = values.get("litellm_provider")
        if not isinstance(provider, str):
            refused.append(Refused("", name, "it names no provider"))
            continue
        names = (provider, name.removeprefix(f"{provider}/"))
        problems = list[str]()
        try:
            classes = _prices(values, left_out, problems)
        except PriceError as error:
            refused.append(Refused(*names, str(error)))
            continue
        prices = classes.listed(problems, embeds=values.get("mode") == "embedding")
        refused += [Refused(*names, problem) for problem in problems]
        entry = Entry(*names, tuple(prices))
        if set(entries.setdefault(names, entry).prices) != set(entry.prices):
            twice.add(names)
    for names in twice:
        del entries[names]
        refused.append(Refused(*names, "the list has it twice, with different prices"))
    folded = {(provider.lower(), model.lower()): entry for (provider, model), entry in entries.items()}

    def resolve(provider: str, model: str) -> Entry | None:
        return folded.get((provider.lower(), model.lower().removeprefix(f"{provider.lower()}/")))

    return PriceList(entries, tuple(refused), left_out, resolve)


def _prices(values: Mapping[str, Any], left_out: Counter[str], problems: list[str]) -> Classes:
    base, above = dict[str, Decimal](), dict[str, list[tuple[int, Decimal]]]()
    request: Decimal | None = None
    for key, value in values.items():
        tier = _ABOVE.fullmatch(key)
        if key in _CLASSES:
            base[key] = _million(key, value)
        elif tier and tier["name"] in _CLASSES:
            above.setdefault(tier["name"], []).append((int(tier["thousands"]) * 1000, _million(key, value)))
        elif key == _REQUEST:
            request = EXACT.multiply(_number(key, value), Decimal(1000))
        elif _MONEY.fullmatch(key):
            left_out[key] += 1
    for number, tier_values in enumerate(values.get("tiered_pricing") or ()):
        _range(number, tier_values, base, above)
    classes = Classes(thousand_requests=request)
    for key, name in _CLASSES.items():
        if key in base:
            setattr(classes, name, tiered(base[key], above.get(key, ())))
        elif key in above:
            problems.append(f"{key} has tiers and no price beneath them")
            classes.withheld.add(name)
    return classes


def _range(
    number: int,
    values: Mapping[str, Any],
    base: dict[str, Decimal],
    above: dict[str, list[tuple[int, Decimal]]],
) -> None:
    """One element of `tiered_pricing`: the first is the base, the others begin where their range does."""
    if "range" not in values:
        raise PriceError("its tiers are not of input tokens")
    start = int(values["range"][0])
    if (number == 0) != (start == 0):
        raise PriceError("its ranges of input tokens do not begin at 0")
    for key in _CLASSES:
        if key in values:
            if number == 0:
                base[key] = _million(key, values[key])
            else:
                above.setdefault(key, []).append((start, _million(key, values[key])))


def _million(key: str, value: Any) -> Decimal:
    return EXACT.multiply(_number(key, value), Decimal(1_000_000))


def _number(key: str, value: Any) -> Decimal:
    if not isinstance(value, Decimal):
        raise PriceError(f"{key} is no number")
    return value
