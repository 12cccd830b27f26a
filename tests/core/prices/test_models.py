"""Each model on quantities around its edges, computed by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from core.decimals import total
from core.prices import Price, PriceError, Tier
from core.prices.models import parts

D = Decimal
FLAT = Price("*", "api.requests", (), D(2), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC))
TIERS = (Tier(D(15), D(10)), Tier(D(100), D(5), fee=D(7)), Tier(None, D(1)))
GRADUATED = replace(FLAT, model="graduated", tiers=TIERS, unit_price=D(10))
VOLUME = replace(GRADUATED, model="volume")
PACKAGE = replace(FLAT, model="package", per=60, unit_price=D(3))


def cost(price: Price, quantity: str, *, included: str = "0", minimum: str = "0") -> Decimal:
    return total(part.amount for part in parts(price, D(quantity), D(included), D(minimum)))


@pytest.mark.parametrize(
    ("price", "quantity", "amount"),
    [
        (FLAT, "0", "0"),
        (FLAT, "1.5", "3"),
        (GRADUATED, "0", "0"),
        (GRADUATED, "15", "150"),
        (GRADUATED, "15.000000001", "157.000000005"),
        (GRADUATED, "16", "162"),
        (GRADUATED, "100", "582"),
        (GRADUATED, "102", "584"),
        (VOLUME, "0", "0"),
        (VOLUME, "15", "150"),
        (VOLUME, "16", "87"),
        (VOLUME, "100", "507"),
        (VOLUME, "101", "101"),
        (PACKAGE, "0", "0"),
        (PACKAGE, "0.000000001", "3"),
        (PACKAGE, "60", "3"),
        (PACKAGE, "60.000000001", "6"),
        (PACKAGE, "121", "9"),
        # A net quantity below zero, where more was taken back than counted.
        (FLAT, "-3", "-6"),
        (GRADUATED, "-3", "-30"),
        (VOLUME, "-3", "-30"),
        (PACKAGE, "-61", "-3"),
    ],
)
def test_what_a_quantity_costs(price: Price, quantity: str, amount: str) -> None:
    assert cost(price, quantity) == D(amount)


@pytest.mark.parametrize(
    ("quantity", "included", "minimum", "explained"),
    [
        ("4", "6", "0", [("included", "4", "0")]),
        ("6", "6", "0", [("included", "6", "0")]),
        ("16", "6", "0", [("included", "6", "0"), ("usage", "10", "20")]),
        ("16", "6", "25", [("included", "6", "0"), ("usage", "10", "20"), ("minimum", "1", "5")]),
        ("16", "6", "20", [("included", "6", "0"), ("usage", "10", "20")]),
        ("0", "6", "25", [("usage", "0", "0"), ("minimum", "1", "25")]),
        ("-2", "6", "0", [("usage", "-2", "-4")]),
    ],
)
def test_what_is_included_and_what_is_due_at_least(
    quantity: str, included: str, minimum: str, explained: list[tuple[str, str, str]]
) -> None:
    found = parts(FLAT, D(quantity), D(included), D(minimum))
    assert [(part.what, part.quantity, part.amount) for part in found] == [
        (what, D(of), D(amount)) for what, of, amount in explained
    ]


def test_a_tier_that_is_not_reached_is_not_explained() -> None:
    assert [part.up_to for part in parts(GRADUATED, D(15), D(0), D(0))] == [D(15)]
    assert [part.up_to for part in parts(GRADUATED, D(16), D(0), D(0))] == [D(15), D(100), D(100)]


def test_tiers_count_what_is_not_included() -> None:
    assert cost(GRADUATED, "20", included="5") == 150
    assert cost(VOLUME, "21", included="5") == 87


def test_a_row_that_this_version_cannot_price_is_named() -> None:
    with pytest.raises(PriceError, match="'auction'; known: flat, graduated"):
        cost(replace(FLAT, model="auction"), "1")
    for price in (GRADUATED, VOLUME):
        with pytest.raises(PriceError, match="last tier"):
            cost(replace(price, tiers=TIERS[:2]), "101")
