"""Both formats of price list, on entries written for each rule."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core.prices import PriceError
from core.prices.lists import PriceList, read_list
from core.tokens import BOUNDS

D = Decimal
INPUT, CACHED, WRITE, OUTPUT = (f"llm.tokens.{name}" for name in ("input", "cached", "cache_write", "output"))


def read(folder: Path, document: object) -> PriceList:
    path = folder / "list.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_list(path)


def litellm(folder: Path, **prices: Any) -> PriceList:
    entry = {"litellm_provider": "azure", "mode": "chat", **prices}
    return read(folder, {"sample_spec": {"input_cost_per_token": 0.0}, "azure/gpt": entry})


def rows(found: PriceList, provider: str = "azure", model: str = "gpt") -> dict[tuple[str, str], str]:
    """Price by meter and the dimensions beside provider and model."""
    return {
        (price.meter, " ".join(value for _, value in price.dimensions)): f"{price.unit_price:f}"
        for price in found.entries[provider, model].prices
    }


def test_litellm_prices_are_for_a_million_and_cached_input_costs_as_input_where_none_is_named(
    tmp_path: Path,
) -> None:
    found = litellm(tmp_path, input_cost_per_token=2.5e-06, output_cost_per_token=1e-05)
    assert rows(found) == {(INPUT, ""): "2.5", (CACHED, ""): "2.5", (WRITE, ""): "2.5", (OUTPUT, ""): "10"}
    found = litellm(
        tmp_path,
        input_cost_per_token=2.5e-06,
        cache_read_input_token_cost=1.25e-06,
        cache_creation_input_token_cost=3.125e-06,
        input_cost_per_request=0.005,
    )
    assert rows(found) == {
        (INPUT, ""): "2.5", (CACHED, ""): "1.25", (WRITE, ""): "3.125", ("llm.requests", ""): "5",
    }  # fmt: skip


def test_a_tier_prices_every_longer_request(tmp_path: Path) -> None:
    found = litellm(
        tmp_path,
        input_cost_per_token=1e-06,
        input_cost_per_token_above_200k_tokens=2e-06,
        input_cost_per_token_above_512k_tokens=4e-06,
        output_cost_per_token=5e-06,
    )
    assert {key: value for key, value in rows(found).items() if key[0] == INPUT} == {
        (INPUT, ""): "1", (INPUT, "over_200000"): "2", (INPUT, "over_256000"): "2",
        (INPUT, "over_272000"): "2", (INPUT, "over_512000"): "4",
    }  # fmt: skip
    assert (CACHED, "over_200000") in rows(found)
    assert [key for key in rows(found) if key[0] == OUTPUT] == [(OUTPUT, "")]


def test_ranges_of_litellm_are_tiers(tmp_path: Path) -> None:
    found = litellm(
        tmp_path,
        tiered_pricing=[
            {"range": [0, 256000.0], "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06},
            {"range": [256000.0, 1000000.0], "input_cost_per_token": 3e-06, "output_cost_per_token": 2e-06},
        ],
    )
    assert rows(found)[INPUT, ""] == "1"
    assert rows(found)[INPUT, "over_256000"] == "3"
    assert (INPUT, "over_200000") not in rows(found)


def test_audio_beside_tiers_names_the_context_too(tmp_path: Path) -> None:
    found = litellm(
        tmp_path,
        input_cost_per_token=1e-06,
        input_cost_per_token_above_200k_tokens=2e-06,
        input_cost_per_audio_token=7e-06,
    )
    audio = {key[1]: value for key, value in rows(found).items() if "audio" in key[1] and key[0] == INPUT}
    assert audio == {"audio": "7", **{f"over_{bound} audio": "7" for bound in BOUNDS}}


def test_the_noise_of_a_double_is_not_a_price_and_a_third_is_none(tmp_path: Path) -> None:
    found = litellm(tmp_path, input_cost_per_token=8.000000000000001e-07, output_cost_per_token=1 / 3e6)
    assert rows(found) == {(INPUT, ""): "0.8", (CACHED, ""): "0.8", (WRITE, ""): "0.8"}
    assert [(one.model, one.reason[:10]) for one in found.refused] == [("gpt", "output: 0.")]


@pytest.mark.parametrize(
    ("prices", "reason"),
    [
        ({"input_cost_per_token": "1e-06"}, "no number"),
        ({"input_cost_per_token": None}, "no number"),
        ({"input_cost_per_token": True}, "no number"),
        ({"input_cost_per_token": -1e-06}, "below zero"),
        ({"input_cost_per_token": 1e-06, "input_cost_per_token_above_150k_tokens": 2e-06}, "above 150000"),
        ({"tiered_pricing": [{"input_cost_per_query": 0.001}]}, "not of input tokens"),
        ({"tiered_pricing": [{"range": [1000, 2000]}]}, "do not begin at 0"),
    ],
)
def test_what_the_book_cannot_say_is_refused_with_its_reason(
    tmp_path: Path, prices: dict[str, Any], reason: str
) -> None:
    found = litellm(tmp_path, **prices)
    assert not [entry for entry in found.entries.values() if entry.prices]
    assert found.refused
    assert all(reason in one.reason for one in found.refused)


def test_a_class_with_tiers_alone_gets_no_price_of_another(tmp_path: Path) -> None:
    found = litellm(
        tmp_path, input_cost_per_token=1e-06, cache_creation_input_token_cost_above_200k_tokens=2e-06
    )
    assert sorted(key[0] for key in rows(found)) == [CACHED, INPUT]
    assert "tiers and no price beneath" in found.refused[0].reason


def test_kinds_that_no_meter_counts_are_counted_and_left_out(tmp_path: Path) -> None:
    found = litellm(
        tmp_path, input_cost_per_token=1e-06, output_cost_per_image=0.04, input_cost_per_token_batches=5e-07
    )
    assert found.left_out == {"output_cost_per_image": 1, "input_cost_per_token_batches": 1}


def test_an_entry_twice_with_different_prices_is_not_chosen_from(tmp_path: Path) -> None:
    def entry(price: float) -> dict[str, object]:
        return {"litellm_provider": "p", "input_cost_per_token": price}

    same = read(tmp_path, {"p/m": entry(1e-06), "m": entry(1e-06), "x": {"mode": "chat"}})
    assert set(same.entries) == {("p", "m")}
    assert [(one.model, one.reason) for one in same.refused] == [("x", "it names no provider")]
    differs = read(tmp_path, {"p/m": entry(1e-06), "m": entry(2e-06)})
    assert not differs.entries
    assert "twice" in differs.refused[0].reason


def test_embedding_models_price_the_meter_of_embeddings(tmp_path: Path) -> None:
    assert (
        rows(litellm(tmp_path, mode="embedding", input_cost_per_token=2e-08))["embedding.tokens", ""]
        == "0.02"
    )


def test_litellm_names_are_found_with_and_without_their_provider(tmp_path: Path) -> None:
    found = litellm(tmp_path, input_cost_per_token=1e-06)
    assert found.resolve("Azure", "azure/GPT") is found.entries["azure", "gpt"]
    assert found.resolve("azure", "gpt-2") is None


def genai(prices: Any, **more: Any) -> list[dict[str, Any]]:
    model = {"id": "sonnet", "match": {"starts_with": "sonnet"}, "prices": prices}
    return [{"id": "anthropic", "provider_match": {"contains": "anthropic"}, "models": [model], **more}]


def test_dates_of_genai_become_valid_time_and_its_tiers_end_with_it(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        genai(
            [
                {"prices": {"input_mtok": {"base": 3, "tiers": [{"start": 200000, "price": 6}]}}},
                {"constraint": {"start_date": "2026-03-13"}, "prices": {"input_mtok": 3.5}},
            ]
        ),
    )
    told = [
        (price.unit_price, price.dimensions[:1], str(price.since)[:10], str(price.until)[:10])
        for price in found.entries["anthropic", "sonnet"].prices
        if price.meter == INPUT and "256" not in str(price.dimensions) and "272" not in str(price.dimensions)
    ]
    assert told == [
        (3, (), "None", "2026-03-13"),
        (6, (("context", "over_200000"),), "None", "2026-03-13"),
        (6, (("context", "over_512000"),), "None", "2026-03-13"),
        (D("3.5"), (), "2026-03-13", "None"),
    ]


def test_an_hour_of_the_day_cannot_be_said(tmp_path: Path) -> None:
    dear = {"constraint": {"start_time": "00:30:00Z", "end_time": "16:30:00Z"}, "prices": {"input_mtok": 2}}
    found = read(tmp_path, genai([{"prices": {"input_mtok": 1}}, dear]))
    assert not found.entries
    assert "time of day" in found.refused[0].reason


@pytest.mark.parametrize(
    ("clause", "name", "is_match"),
    [
        ({"starts_with": "GPT-4"}, "gpt-4o", True),
        ({"ends_with": "mini"}, "o3-mini", True),
        ({"equals": "gpt"}, "gpt-4", False),
        ({"regex": "^o[134]"}, "o5", False),
        ({"and": [{"contains": "a"}, {"contains": "b"}]}, "ab", True),
        ({"and": [{"contains": "a"}, {"contains": "b"}]}, "a", False),
        ({"or": [{"equals": "a"}, {"equals": "b"}]}, "b", True),
    ],
)
def test_clauses(tmp_path: Path, clause: dict[str, Any], name: str, is_match: bool) -> None:
    document = genai({"input_mtok": 1})
    document[0]["models"][0]["match"] = clause
    assert (read(tmp_path, document).resolve("anthropic", name) is not None) is is_match


def test_a_provider_is_asked_then_those_whose_models_it_serves_and_nobody_else(tmp_path: Path) -> None:
    document = [
        *genai({"input_mtok": 3}),
        {"id": "azure", "fallback_model_providers": ["anthropic"], "models": []},
    ]
    found = read(tmp_path, document)
    served = found.resolve("azure", "Sonnet-4-20250514")
    assert served is not None
    assert served.provider == "anthropic"
    assert found.resolve("our-anthropic", "sonnet-4") is served
    assert found.resolve("modal", "sonnet-4") is None
    assert found.resolve("azure", "opus") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "3", '[{"id": "x"}]', '{"a": {"litellm_provider": "p", "input_cost_per_token": NaN}}'],
)
def test_what_is_no_list_is_said_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(PriceError, match=r"list\.json"):
        read(tmp_path, text)
    with pytest.raises(PriceError, match="cannot be read"):
        read_list(tmp_path / "absent.json")
