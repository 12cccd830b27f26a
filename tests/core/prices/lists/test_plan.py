"""What an import would change: little is taken, nothing silently."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from core.prices import EVERYBODY, Price, PriceBook
from core.prices.lists import Entry, Listed, PriceList, Refused
from core.prices.lists.plan import ALWAYS, Plan, plan

D = Decimal
AT = datetime(2026, 5, 5, 10, 30, tzinfo=UTC)
HOUR = AT.replace(minute=0)
INPUT = "llm.tokens.input"


def listed(price: str, dimensions: tuple[tuple[str, str], ...] = (), **dates: datetime | None) -> Listed:
    return Listed(INPUT, dimensions, D(price), 1_000_000, **dates)


def a_list(*prices: Listed, model: str = "m", refused: tuple[Refused, ...] = ()) -> PriceList:
    entry = Entry("p", model, prices)
    return PriceList(
        {("p", model): entry}, refused, resolve=lambda provider, name: entry if name[0] == model[0] else None
    )


def imported(made: Plan) -> list[Price]:
    """Rows as the table would hold them."""
    return [replace(price, revision=number) for number, price in enumerate(made.prices, 1)]


def cost(rows: list[Price], at: datetime = AT, **dimensions: str) -> Decimal | None:
    price = PriceBook("org_1", rows).find(INPUT, {"provider": "p", "model": "m", **dimensions}, at)
    return None if price is None else price.unit_price


def test_a_new_price_holds_from_the_beginning_and_a_second_import_changes_nothing() -> None:
    made = plan(a_list(listed("3")), [], AT)
    (row,) = imported(made)
    assert (row.tenant, row.valid_from, row.currency) == (EVERYBODY, ALWAYS, "USD")
    again = plan(a_list(listed("3.00")), [row], AT)
    assert (again.changes, again.parked, again.unchanged) == ([], [], 1)


def test_a_changed_price_holds_from_the_hour_of_the_import() -> None:
    rows = imported(plan(a_list(listed("3")), [], AT - timedelta(days=30)))
    made = plan(a_list(listed("2")), rows, AT)
    assert [(change.price.valid_from, change.before) for change in made.changes] == [(HOUR, rows[0])]
    rows += [replace(row, revision=9) for row in made.prices]
    assert [cost(rows, at) for at in (HOUR - timedelta(hours=1), HOUR)] == [3, 2]


@pytest.mark.parametrize(
    ("before", "after", "parked"),
    [
        ("3", "9", False), ("3", "9.000000000001", True), ("9", "3", False), ("9", "2.999999999999", True),
        ("0", "0", False), ("0", "0.000000000001", True), ("0.035", "35", True), ("1", "0", True),
    ],
)  # fmt: skip
def test_a_jump_is_parked_and_taken_only_when_it_is_named(before: str, after: str, parked: bool) -> None:
    rows = imported(plan(a_list(listed(before)), [], AT))
    made = plan(a_list(listed(after)), rows, AT)
    assert bool(made.parked) is parked
    assert bool(made.changes) is (not parked and before != after)
    if parked:
        assert "factor of 3" in made.parked[0].reason
        assert plan(a_list(listed(after)), rows, AT, accept=["p/m"]).prices
        assert plan(a_list(listed(after)), rows, AT, accept=["p/other"]).parked


def test_a_wider_bound_is_the_callers() -> None:
    rows = imported(plan(a_list(listed("1")), [], AT))
    assert plan(a_list(listed("10")), rows, AT, factor=D(10)).prices
    assert plan(a_list(listed("2")), rows, AT, factor=D("1.5")).parked


def test_a_first_price_whose_unit_slipped_is_parked_too() -> None:
    """A list of 2026 has a model at 3,200 dollars for a million tokens: its price of a thousand."""
    made = plan(a_list(listed("3.2E+3")), [], AT)
    assert not made.changes
    assert made.parked[0].reason == "3200 for a million is above 1000: is its unit right?"
    assert plan(a_list(listed("1000")), [], AT).prices


def test_a_price_of_another_model_is_never_replaced_by_a_list() -> None:
    (row,) = imported(plan(a_list(listed("3")), [], AT))
    for own in (replace(row, model="volume"), replace(row, included=D(5))):
        assert "model" in plan(a_list(listed("2")), [own], AT).parked[0].reason


def test_a_tier_that_the_list_gave_up_ends() -> None:
    tier = (("context", "over_200000"),)
    rows = imported(plan(a_list(listed("3"), listed("6", tier)), [], AT - timedelta(days=9)))
    assert cost(rows, context="over_200000") == 6
    made = plan(a_list(listed("3")), rows, AT)
    rows += [replace(row, revision=9) for row in made.prices]
    assert cost(rows, context="over_200000") == 3
    assert cost(rows, HOUR - timedelta(hours=1), context="over_200000") == 6
    assert plan(a_list(listed("3")), rows, AT).changes == []


def test_dated_prices_follow_each_other_and_what_is_past_stays() -> None:
    change, tier = datetime(2026, 7, 1, tzinfo=UTC), (("context", "over_200000"),)
    dated = a_list(listed("2", until=change), listed("4", tier, until=change), listed("3", since=change))
    rows = imported(plan(dated, [], AT))
    after = change + timedelta(days=1)
    assert [cost(rows), cost(rows, after)] == [2, 3]
    assert [cost(rows, context="over_200000"), cost(rows, after, context="over_200000")] == [4, 3]
    assert plan(dated, rows, AT).changes == []
    # The same list read later does not price the past anew, nor does one that learned of an earlier date.
    assert plan(dated, rows, after).changes == []
    earlier = datetime(2026, 4, 1, tzinfo=UTC)
    learned = a_list(listed("2", until=earlier), listed("3", since=earlier))
    made = plan(learned, imported(plan(a_list(listed("2")), [], AT)), AT)
    assert [(row.unit_price, row.valid_from) for row in made.prices] == [(D(3), HOUR)]


def test_an_announced_price_ends_the_tier_before_it() -> None:
    change, tier = datetime(2026, 7, 1, tzinfo=UTC), (("context", "over_200000"),)
    rows = imported(plan(a_list(listed("2"), listed("4", tier)), [], AT))
    announced = a_list(listed("2", until=change), listed("4", tier, until=change), listed("3", since=change))
    made = plan(announced, rows, AT)
    rows += [replace(row, revision=number) for number, row in enumerate(made.prices, 9)]
    assert cost(rows, change, context="over_200000") == 3
    assert cost(rows, change - timedelta(hours=1), context="over_200000") == 4
    assert plan(announced, rows, AT).changes == []


def general(price: str, **more: object) -> Price:
    row = Price(EVERYBODY, INPUT, (), D(price), 1_000_000, "USD", ALWAYS, revision=1)
    return replace(row, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "parked"), [("2.5", "7.5", False), ("2.5", "7.6", True), ("2.5", "0.15", True), ("0", "1", True)]
)  # fmt: skip
def test_the_first_row_of_a_model_in_use_is_held_against_what_its_usage_costs(
    before: str, after: str, parked: bool
) -> None:
    rows, used = [general(before)], [("p", "m")]
    made = plan(a_list(listed(after)), rows, AT, names=used)
    assert bool(made.parked) is parked
    if parked:
        assert made.prices == []
        assert "factor of 3, for usage that a more general row" in made.parked[0].reason
        made = plan(a_list(listed(after)), rows, AT, names=used, accept=["p/m"])
    assert [change.before for change in made.changes] == rows
    rows += [replace(row, revision=9) for row in made.prices]
    assert [cost(rows, at) for at in (HOUR - timedelta(hours=1), HOUR)] == [D(before), D(after)]
    again = plan(a_list(listed(after)), rows, AT + timedelta(days=1), names=used)
    assert (again.changes, again.parked, again.unchanged) == ([], [], 1)


def test_a_first_row_that_prices_no_usage_holds_from_the_beginning() -> None:
    """Nobody names the model; or the more general row does not hold, and usage waits for a price."""
    made = plan(a_list(listed("100")), [general("2.5")], AT)
    assert [(change.price.valid_from, change.before) for change in made.changes] == [(ALWAYS, None)]
    for other in (general("2.5", valid_to=HOUR), general("2.5", meter="llm.tokens.output"), general("2.5", dimensions=(("model", "x"),))):  # fmt: skip
        made = plan(a_list(listed("100")), [other], AT, names=[("p", "m")])
        assert [change.price.valid_from for change in made.changes] == [ALWAYS]


def test_a_first_tier_of_a_model_in_use_changes_what_long_requests_cost() -> None:
    tier = (("context", "over_200000"),)
    rows = [*imported(plan(a_list(listed("3")), [], AT)), general("2.5", revision=8)]
    made = plan(a_list(listed("3"), listed("6", tier)), rows, AT, names=[("p", "m")])
    assert [(change.price.valid_from, change.before) for change in made.changes] == [(HOUR, rows[0])]
    assert plan(a_list(listed("3"), listed("10", tier)), rows, AT, names=[("p", "m")]).parked


def test_dated_prices_of_a_model_in_use_begin_with_the_import() -> None:
    past, change = HOUR - timedelta(days=9), HOUR + timedelta(days=9)
    dated = a_list(listed("2", until=past), listed("3", since=past, until=change), listed("4", since=change))
    rows = [general("2.5")]
    made = plan(dated, rows, AT, names=[("p", "m")])
    assert [(row.valid_from, row.valid_to) for row in made.prices] == [(HOUR, change), (change, None)]
    rows += [replace(row, revision=number) for number, row in enumerate(made.prices, 9)]
    moments = (past - timedelta(days=1), HOUR - timedelta(hours=1), HOUR, change)
    assert [cost(rows, at) for at in moments] == [D("2.5"), D("2.5"), 3, 4]
    assert plan(dated, rows, AT, names=[("p", "m")]).changes == []


@pytest.mark.parametrize("row", [general("2.5", model="volume"), general("2.5", included=D(5)), general("2.5", currency="EUR")])  # fmt: skip
def test_a_general_price_that_no_list_can_say_is_not_replaced_unseen(row: Price) -> None:
    assert plan(a_list(listed("2.5")), [row], AT, names=[("p", "m")]).parked
    assert plan(a_list(listed("2.5")), [row], AT).prices


def test_names_in_use_get_rows_of_their_own_and_unknown_ones_are_named() -> None:
    made = plan(a_list(listed("3")), [], AT, names=[("p", "m-2026"), ("other", "m"), ("p", "x")])
    assert [dict(price.dimensions) for price in made.prices] == [
        {"provider": "other", "model": "m"}, {"provider": "p", "model": "m"}, {"provider": "p", "model": "m-2026"},
    ]  # fmt: skip
    assert made.unknown == [("p", "x")]


def test_only_what_is_wanted_is_taken() -> None:
    found = a_list(listed("3"), refused=(Refused("p", "m", "why"), Refused("q", "m", "why")))
    assert plan(found, [], AT, only=["p"]).prices
    assert plan(found, [], AT, only=["p/m"]).prices
    assert plan(found, [], AT, only=["p/n", "q"]).prices == []
    assert [one.provider for one in plan(found, [], AT, only=["q"]).refused] == ["q"]


def test_prices_of_organisations_are_not_compared() -> None:
    (row,) = imported(plan(a_list(listed("3")), [], AT))
    assert plan(a_list(listed("3")), [replace(row, tenant="org_1", unit_price=D(100))], AT).prices
