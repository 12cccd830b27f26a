"""Expected costs of recorded replies of providers, met to the last digit by the imported book.

The replies were computed by another program, with the time fixed at noon of 2025-11-06, from the list
as it stood on 2026-08-21; the list at hand is that of 2026-07-25. `BEYOND` names every reply that this
book cannot price as expected, and why.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from core.decimals import EXACT
from core.prices import EVERYBODY, Price, PriceBook
from core.prices.lists import FORMATS, read_list
from core.prices.lists.plan import plan
from core.rating import Usage, rate
from core.tokens import CACHE_WRITE, CACHED, EMBEDDED, INPUT, OUTPUT, Reply, pieces
from tests.real_data import real_data

D = Decimal
AT = datetime(2025, 11, 6, 12, tzinfo=UTC)
IN = frozenset({INPUT, CACHED, CACHE_WRITE, EMBEDDED})
NEWER = "the list at hand is older than the expected cost"
BEYOND = {
    ("google", "gemini-2.5-flash-image"): (
        3,
        f"{NEWER}: it prices text as images, the later one tells them apart",
    ),
    ("aws", "openai.gpt-5.6-luna"): (3, f"{NEWER} and has no such model"),
    ("zai", "glm-5.2"): (1, f"{NEWER} and has no such provider"),
    ("fireworks", "gpt-oss-120b"): (4, f"{NEWER} and has a price where none is expected"),
    ("deepseek", "deepseek-r1-distill-llama-70b"): (1, "its price depends on the time of day"),
}
WEB_SEARCH = Price(
    EVERYBODY, "tool.calls", (("tool", "web_search"),), D(10), 1000, "USD", datetime(2000, 1, 1, tzinfo=UTC)
)  # fmt: skip
"""The list has no price of web searches; the six replies that made some expect 10 dollars a thousand."""

_REPLIES = real_data("usage", "genai_prices_usages_a.json")
_LIST = real_data("prices", "genai_prices_data.json")


@dataclass(frozen=True)
class Recorded:
    provider: str
    model: str
    flavor: str
    counts: Mapping[str, int]
    expected: Mapping[str, Decimal]

    @property
    def reply(self) -> Reply:
        names = {
            "input": "input_tokens", "cached": "cache_read_tokens", "cache_written": "cache_write_tokens",
            "output": "output_tokens", "input_audio": "input_audio_tokens",
            "cached_audio": "cache_audio_read_tokens", "output_audio": "output_audio_tokens",
        }  # fmt: skip
        return Reply(**{ours: self.counts.get(theirs, 0) for ours, theirs in names.items()})


def recorded(path: Path) -> Iterator[Recorded]:
    """Every reading of every reply; without a model there is nothing to price."""
    for body in json.loads(path.read_text(), parse_float=Decimal):
        for reading in body["extracted"]:
            for by in reading["extractors"]:
                if "model" in body:
                    expected = {name: D(by.get(f"{name}_price", "0")) for name in ("input", "output")}
                    expected["total"] = D(by.get("total_price", EXACT.add(*expected.values())))
                    yield Recorded(
                        by["provider_id"], body["model"], by["api_flavor"], reading["usage"], expected
                    )


def costs(one: Recorded, book: PriceBook) -> dict[str, Decimal]:
    # A reader for embeddings also reads the input of chats; what embeds is in the model's name.
    embeds = one.flavor == "embeddings" and "embedding" in one.model
    found = [
        Usage(
            piece.meter,
            {"provider": one.provider, "model": one.model, **piece.dimensions},
            AT,
            D(piece.quantity),
        )
        for piece in pieces(one.reply, embedding=embeds)
    ]
    searches = one.counts.get("web_searches", 0)
    found += [Usage("tool.calls", {"tool": "web_search"}, AT, D(searches))] if searches else []
    return {
        "input": rate([usage for usage in found if usage.meter in IN], book).unrounded,
        "output": rate([usage for usage in found if usage.meter == OUTPUT], book).unrounded,
        "total": rate(found, book).unrounded,
    }


if _REPLIES and _LIST:
    replies, prices = _REPLIES, _LIST

    def test_recorded_replies_cost_what_was_expected_to_the_last_digit() -> None:
        every = list(recorded(replies))
        names = {(one.provider, one.model) for one in every}
        book = PriceBook("org_1", [*plan(read_list(prices), [], AT, names=names).prices, WEB_SEARCH])
        differing = [one for one in every if costs(one, book) != one.expected]
        assert Counter((one.provider, one.model) for one in differing) == {
            name: count for name, (count, _) in BEYOND.items()
        }
        priced = [one for one in every if one.expected["total"]]
        met = len(priced) - sum(1 for one in differing if one.expected["total"])
        print(f"{met:,} of {len(priced):,} priced readings met to the last digit")
        assert len(priced) > 1_800
        assert any(one.reply.input > 200_000 and one.expected["input"] for one in priced)
        assert any(one.reply.input_audio and one.expected["input"] for one in priced)

    def test_the_whole_list_is_read_and_what_is_not_is_named() -> None:
        found = read_list(prices)
        assert len(found.entries) > 1_400
        assert {(one.provider, one.model) for one in found.refused if "time of day" in one.reason} == {
            ("deepseek", "deepseek-chat"),
            ("deepseek", "deepseek-reasoner"),
        }
        assert found.left_out == {}


_LITELLM = real_data("prices", "litellm_model_prices.json")

if _LITELLM:
    litellm = _LITELLM

    def test_litellms_list_is_read_whole_and_its_slipped_units_are_parked() -> None:
        found = read_list(litellm)
        assert len(found.entries) > 4_400
        assert not [name for name in found.entries if "sample_spec" in name]
        assert len(found.refused) < 30
        made = plan(found, [], AT)
        assert len(made.changes) > 19_000
        assert {dict(one.change.price.dimensions)["model"] for one in made.parked} == {
            "jais-30b-chat",
            "core42/jais-13b-chat",
        }
        again = plan(found, made.prices, AT)
        assert (again.changes, again.unchanged) == ([], len(made.changes))

    def test_a_list_in_cents_is_parked_whole() -> None:
        """The unit error of a public list that was found in production: every price 100 times too high."""
        document: dict[str, Any] = json.loads(litellm.read_text(), parse_float=Decimal, parse_int=Decimal)
        known = plan(read_list(litellm), [], AT).prices
        for entry in document.values():
            for key in entry:
                if key.startswith(("input_cost_per_token", "output_cost_per_token")):
                    entry[key] = EXACT.multiply(entry[key], D(100))
        made = plan(FORMATS["litellm"](document), known, AT)
        dearer = [change for change in made.changes if change.before and change.before.unit_price]
        assert dearer == []
        assert len(made.parked) > 10_000
