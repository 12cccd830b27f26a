"""A price book is taken whole or refused with the entry and what to change."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from core.prices import DEFAULT_FILE, PriceError, Tier, read_file

GOOD = {
    "meter": '"llm.tokens.input"',
    "unit_price": '"2.50"',
    "per": "1_000_000",
    "valid_from": "2020-01-01T00:00:00Z",
}


def book(folder: Path, *entries: dict[str, str], currency: str = 'currency = "USD"') -> Path:
    text = [currency]
    for entry in entries:
        text += ["[[price]]", *(f"{name} = {value}" for name, value in entry.items())]
    path = folder / "prices.toml"
    path.write_text("\n".join(text))
    return path


def test_the_shipped_book() -> None:
    terms = [(p.tenant, p.meter, p.unit_price, p.per, p.currency) for p in read_file(DEFAULT_FILE)]
    assert terms == [
        ("*", "llm.tokens.input", Decimal("2.50"), 1_000_000, "USD"),
        ("*", "llm.tokens.output", Decimal("10.00"), 1_000_000, "USD"),
        ("*", "llm.tokens.cache_write", Decimal("2.50"), 1_000_000, "USD"),
    ]


def test_every_field(tmp_path: Path) -> None:
    entry = GOOD | {
        "tenant": '"org_1"',
        "dimensions": '{ region = "eu", model = "m" }',
        "valid_from": "2020-01-01T02:00:00+02:00",
        "valid_to": "2027-01-01T00:00:00Z",
    }
    (price,) = read_file(book(tmp_path, entry))
    assert price.tenant == "org_1"
    assert price.dimensions == (("model", "m"), ("region", "eu"))
    assert (price.valid_from, price.valid_to) == (
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


def test_models_with_what_is_included_and_due(tmp_path: Path) -> None:
    entry = {name: value for name, value in GOOD.items() if name != "unit_price"} | {
        "tenant": '"org_1"',
        "model": '"graduated"',
        "tiers": '[{ up_to = 1_000, unit_price = "0.40" }, { up_to = "1500.5", unit_price = "0.30", fee = "2" }, '
        '{ unit_price = "0" }]',
        "included": "10",
        "minimum": '"50.00"',
    }
    package = GOOD | {"meter": '"api.requests"', "model": '"package"', "per": "60"}
    graduated, packages = read_file(book(tmp_path, entry, package))
    assert (graduated.model, graduated.unit_price, graduated.included, graduated.minimum) == (
        "graduated", Decimal("0.40"), Decimal(10), Decimal(50),
    )  # fmt: skip
    assert graduated.tiers == (
        Tier(Decimal(1000), Decimal("0.4")),
        Tier(Decimal("1500.5"), Decimal("0.3"), Decimal(2)),
        Tier(None, Decimal(0)),
    )
    assert (packages.model, packages.per, packages.tiers) == ("package", 60, ())


TIERED = {name: value for name, value in GOOD.items() if name != "unit_price"} | {"model": '"volume"'}
LAST = '{ unit_price = "1" }'


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (TIERED, "a volume price has `tiers`"),
        (TIERED | {"tiers": f"[{LAST}]", "unit_price": '"1"'}, "a volume price has `tiers`"),
        (GOOD | {"tiers": f"[{LAST}]"}, "a flat price has `unit_price`, no `tiers`"),
        (GOOD | {"model": '"auction"'}, "one of flat, graduated, volume, package"),
        (GOOD | {"model": "1"}, "one of flat"),
        (TIERED | {"tiers": "[]"}, "must be a list such as"),
        (TIERED | {"tiers": "[1]"}, "must be a list such as"),
        (TIERED | {"tiers": '[{ up_to = 5, unit_price = "1" }]'}, "tier 1: .* the last has no end"),
        (TIERED | {"tiers": f"[{LAST}, {LAST}]"}, "tier 1: every tier but the last"),
        (
            TIERED | {"tiers": f'[{{ up_to = 0, unit_price = "1" }}, {LAST}]'},
            "tier 1: `up_to` must be larger",
        ),
        (
            TIERED
            | {"tiers": f'[{{ up_to = 5, unit_price = "1" }}, {{ up_to = 5, unit_price = "1" }}, {LAST}]'},
            "tier 2: `up_to` must be larger",
        ),
        (
            TIERED | {"tiers": f'[{{ up_to = 1.5, unit_price = "1" }}, {LAST}]'},
            "tier 1: `up_to` must be a whole",
        ),
        (TIERED | {"tiers": "[{ up_to = 5 }, { unit_price = '1' }]"}, "tier 1: `unit_price` is missing"),
        (TIERED | {"tiers": "[{ unit_price = 1 }]"}, "tier 1: `unit_price` must be decimal text"),
        (TIERED | {"tiers": "[{ unit_price = '1', fee = '-1' }]"}, "tier 1: `fee` must be decimal text"),
        (TIERED | {"tiers": "[{ unit_price = '1', price = '1' }]"}, "tier 1: unknown price"),
        (TIERED | {"tiers": f"[{LAST}]", "per": "60"}, "divides exactly"),
        (GOOD | {"included": "-1"}, "`included` must be"),
        (GOOD | {"included": "1.5"}, "`included` must be"),
        (GOOD | {"minimum": '"5"'}, "name it in `tenant`"),
        (GOOD | {"minimum": "5", "tenant": '"org_1"'}, "decimal text"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(tmp_path: Path, entry: dict[str, str], message: str) -> None:
    with pytest.raises(PriceError, match=f"price 1 .*{message}"):
        read_file(book(tmp_path, entry))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meter": '"llm.tokens"'}, "not a registered meter"),
        ({"meter": "1"}, "not a registered meter"),
        ({"unit_price": "2.50"}, "decimal text"),
        ({"unit_price": '"-1"'}, "decimal text"),
        ({"unit_price": '"1e3"'}, "decimal text"),
        ({"unit_price": '"0.0000000000001"'}, "decimal text"),
        ({"per": "0"}, "whole number"),
        ({"per": "60"}, "divides exactly"),
        ({"per": "true"}, "whole number"),
        ({"per": "1.0"}, "whole number"),
        ({"valid_from": "2020-01-01T00:30:00Z"}, "full hour"),
        ({"valid_from": "2020-01-01T00:00:00"}, "with its zone"),
        ({"valid_from": "2020-01-01"}, "with its zone"),
        ({"valid_to": "2020-01-01T00:00:00Z"}, "after `valid_from`"),
        ({"tenant": '"acme"'}, "organisation's id"),
        ({"dimensions": "{ colour = 'red' }"}, "has the dimensions"),
        ({"dimensions": "{ model = 1 }"}, "table of text"),
        ({"discount": "1"}, "unknown discount"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(PriceError, match=f"price 2 .*{message}"):
        read_file(book(tmp_path, GOOD, GOOD | {"meter": '"llm.tokens.output"'} | change))


def test_what_cannot_stand_together(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match="two prices from 2020"):
        read_file(book(tmp_path, GOOD, GOOD))
    one, other = GOOD | {"dimensions": "{ model = 'a' }"}, GOOD | {"dimensions": "{ region = 'eu' }"}
    with pytest.raises(PriceError, match="neither says more"):
        read_file(book(tmp_path, one, other))
    assert len(read_file(book(tmp_path, one, GOOD | {"dimensions": "{ model = 'b' }"}))) == 2


@pytest.mark.parametrize("currency", ["", "currency = 'usd'", "currency = 1", "money = 'USD'", "currency ="])
def test_a_book_needs_a_currency(tmp_path: Path, currency: str) -> None:
    with pytest.raises(PriceError):
        read_file(book(tmp_path, GOOD, currency=currency))


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match="cannot be read"):
        read_file(tmp_path / "absent.toml")


def test_the_example_of_the_page_on_prices_can_be_used(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "prices.md").read_text()
    (tmp_path / "prices.toml").write_text(f'currency = "USD"\n{page.split("```toml")[1].split("```")[0]}')
    graduated, committed = read_file(tmp_path / "prices.toml")
    assert [tier.up_to for tier in graduated.tiers] == [1_000_000, None]
    assert committed.minimum == 500
