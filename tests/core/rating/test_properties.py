"""Money properties over every model, in currencies with 0, 2 and 3 decimals (check 13 of the acceptance list)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, localcontext

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.decimals import EXACT, canonical, total
from core.prices import MODELS, Price, PriceBook, Tier
from core.prices.models import parts
from core.rating import (
    Rated,
    ServicePeriod,
    Usage,
    allocate,
    explain,
    minor_digits,
    month_of,
    rate,
    round_amount,
)

D = Decimal
MARCH = ServicePeriod(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
HOUR = timedelta(hours=1)
CURRENCIES = {"JPY": 0, "USD": 2, "KWD": 3}


def decimals(most: int, places: int) -> st.SearchStrategy[Decimal]:
    return st.decimals(0, most, places=places, allow_nan=False, allow_infinity=False)


quantities = decimals(10**9, 9)
money = decimals(10**4, 12)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    bounds = sorted(draw(st.sets(decimals(10**6, 9).filter(bool), max_size=4)))
    fees = st.sampled_from([D(0), D("0.005"), D(7)])
    return tuple(Tier(bound, draw(money), draw(fees)) for bound in [*bounds, None])


@st.composite
def priced(draw: st.DrawFn, *models: str, promises: bool = True) -> Price:
    """A tenant's own price of any model, with or without an included quantity and a minimum."""
    model = draw(st.sampled_from(models or tuple(MODELS)))
    found = draw(tiers()) if MODELS[model].tiered else ()
    return Price(
        tenant="org_1",
        meter="api.requests",
        dimensions=(),
        unit_price=found[0].unit_price if found else draw(money),
        per=draw(st.sampled_from([1, 60, 1000] if model == "package" else [1, 8, 1000, 1_000_000])),
        currency=draw(st.sampled_from(sorted(CURRENCIES))),
        valid_from=datetime(2020, 1, 1, tzinfo=UTC),
        model=model,
        tiers=found,
        included=draw(decimals(1000, 9)) if promises else D(0),
        minimum=draw(decimals(1000, 4)) if promises else D(0),
    )


def used(quantity: Decimal, hour: int = 0) -> Usage:
    return Usage("api.requests", {}, MARCH.start + hour * HOUR, quantity)


def rated(price: Price, *quantity: Decimal) -> Rated:
    return rate([used(one, hour) for hour, one in enumerate(quantity)], PriceBook("org_1", [price]), MARCH)


@given(st.lists(st.tuples(st.integers(0, 100 * 24), quantities), max_size=8), priced())
def test_13_shares_add_up_to_lines_and_lines_to_the_total(
    usage: list[tuple[int, Decimal]], price: Price
) -> None:
    found = rate([used(quantity, hour) for hour, quantity in usage], PriceBook("org_1", [price]))
    assert total(line.amount for line in found.lines) == found.total
    assert total(line.amount_unrounded for line in found.lines) == found.unrounded
    assert total(line.quantity for line in found.lines) == total(quantity for _, quantity in usage)
    for line in found.lines:
        assert total(part.share for part in line.parts) == line.amount
        assert total(part.amount for part in line.parts) == line.amount_unrounded
        assert line.amount == round_amount(line.amount_unrounded, price.currency)
        assert -int(line.amount.as_tuple().exponent) == CURRENCIES[price.currency]
        assert line.period is None or line.period == month_of(line.period.start)
    assert len({line.period for line in found.lines}) == len(found.lines)


@given(quantities, priced())
def test_13_an_explanation_computes_again_to_the_amount(quantity: Decimal, price: Price) -> None:
    """From its text alone, by another arithmetic than the one that made it."""
    (line,) = rated(price, quantity).lines
    told = explain(line)
    unit = D(1).scaleb(-CURRENCIES[price.currency])
    amounts = [
        EXACT.divide(EXACT.multiply(D(part["quantity"]), D(part["unit_price"])), D(part["per"]))
        for part in told["parts"]
    ]
    assert amounts == [D(part["amount_unrounded"]) for part in told["parts"]]
    again = total(amounts)
    assert again == D(told["amount_unrounded"]) == line.amount_unrounded
    assert abs(EXACT.subtract(D(told["amount"]), again)) <= unit / 2
    assert total(D(part["amount"]) for part in told["parts"]) == D(told["amount"])
    assert (told["model"], D(told["quantity"])) == (price.model, quantity)
    if price.model == "graduated":
        inside = [part for part in told["parts"] if part["what"] in ("tier", "included")]
        assert total(D(part["quantity"]) for part in inside) == quantity


@given(quantities, quantities, priced(*[name for name, model in MODELS.items() if model.monotone]))
def test_13_more_never_costs_less_where_a_model_says_so(one: Decimal, two: Decimal, price: Price) -> None:
    less, more = sorted((one, two))
    assert rated(price, less).unrounded <= rated(price, more).unrounded
    assert rated(price, less).total <= rated(price, more).total


def test_13_volume_declares_that_more_may_cost_less() -> None:
    assert not MODELS["volume"].monotone
    price = Price(
        "org_1", "api.requests", (), D(10), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC), model="volume",
        tiers=(Tier(D(15), D(10)), Tier(None, D(5))),
    )  # fmt: skip
    fifteen, sixteen = (rated(price, D(number)).total for number in (15, 16))
    assert [fifteen, sixteen, sixteen - fifteen] == [150, 80, -70]


@given(st.lists(quantities, max_size=6), st.data(), priced())
def test_13_the_pieces_of_a_period_cost_what_the_whole_does_in_any_order(
    pieces: list[Decimal], data: st.DataObject, price: Price
) -> None:
    whole = rated(price, total(pieces))
    assume(pieces)
    assert rated(price, *data.draw(st.permutations(pieces))).unrounded == whole.unrounded


@given(quantities, quantities, priced(*[n for n, m in MODELS.items() if m.additive], promises=False))
def test_13_a_split_period_costs_what_the_whole_does_where_a_model_is_additive(
    one: Decimal, two: Decimal, price: Price
) -> None:
    apart = EXACT.add(rated(price, one).unrounded, rated(price, two).unrounded)
    assert apart == rated(price, EXACT.add(one, two)).unrounded


@given(quantities, priced())
def test_13_each_month_is_a_period_of_its_own(quantity: Decimal, price: Price) -> None:
    book = PriceBook("org_1", [price])
    months = [used(quantity, hour) for hour in (0, 31 * 24)]
    apart = [rate([piece], book) for piece in months]
    assert rate(months, book).unrounded == EXACT.add(apart[0].unrounded, apart[1].unrounded)


@given(
    st.sets(st.integers(1, 31 * 24 - 1), max_size=4),
    decimals(10**6, 12),
    st.sampled_from(["included", "minimum"]),
)
def test_13_a_promise_of_a_period_is_kept_once_however_often_its_price_changes(
    changes: set[int], promised: Decimal, what: str
) -> None:
    """Prices that follow each other in a period carry parts of it that add up to the whole."""
    first = Price("org_1", "api.requests", (), D(1), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC))
    starts = [first.valid_from, *(MARCH.start + hour * HOUR for hour in sorted(changes))]
    rows = [replace(first, valid_from=start, **{what: promised}) for start in starts]  # type: ignore[arg-type]
    book = PriceBook("org_1", rows)
    if what == "minimum":
        assert rate([], book, MARCH).unrounded == promised
    else:
        much = [used(D(10**7), int((max(row.valid_from, MARCH.start) - MARCH.start) / HOUR)) for row in rows]
        free = [
            part for line in rate(much, book, MARCH).lines for part in line.parts if part.what == "included"
        ]
        assert total(part.quantity for part in free) == promised


signs = st.sampled_from([1, -1])


@given(
    st.lists(decimals(10**6, 12), min_size=1, max_size=8),
    st.integers(0, 10**12),
    signs,
    signs,
    st.sampled_from(sorted(CURRENCIES)),
)
def test_13_an_allocation_adds_up_and_nobody_is_a_unit_away_from_his_share(
    weights: list[Decimal], units: int, sign: int, of_weights: int, currency: str
) -> None:
    unit = D(1).scaleb(-CURRENCIES[currency])
    assert minor_digits(currency) == CURRENCIES[currency]
    amount = sign * units * unit
    shares = allocate(amount, [of_weights * weight for weight in weights], currency)
    assert total(shares) == amount
    together = total(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert share == round_amount(share, currency)
        if together:
            # |share - amount × weight / together| < unit, without a division
            gap = EXACT.subtract(EXACT.multiply(share, together), EXACT.multiply(amount, weight))
            assert abs(gap) < EXACT.multiply(unit, together)
    ordered = sorted(zip(weights, map(abs, shares), strict=True), key=lambda pair: (pair[0], pair[1]))
    assert together == 0 or [abs(share) for _, share in ordered] == sorted(abs(share) for share in shares)


@pytest.mark.parametrize(
    ("amount", "weights", "currency", "shares"),
    [
        ("10.00", "1 1 1", "USD", "3.34 3.33 3.33"),
        ("-10.00", "1 1 1", "USD", "-3.34 -3.33 -3.33"),
        ("0.05", "3 3 3 1", "USD", "0.02 0.02 0.01 0.00"),
        ("100", "0.1 0.2 0.3", "JPY", "17 33 50"),
        ("1.000", "1 2", "KWD", "0.333 0.667"),
        ("0.02", "0 0 0", "USD", "0.01 0.01 0.00"),
        ("7.00", "-1 -3", "USD", "1.75 5.25"),
    ],
)  # fmt: skip
def test_13_what_is_left_goes_to_the_largest_remainders(
    amount: str, weights: str, currency: str, shares: str
) -> None:
    found = allocate(D(amount), [D(weight) for weight in weights.split()], currency)
    assert [str(share) for share in found] == shares.split()


@pytest.mark.parametrize(
    ("amount", "weights", "message"),
    [
        ("0.005", ["1"], "not rounded"),
        ("1", [], "one or more weights"),
        ("1", ["1", "-1"], "all >= 0 or all <= 0"),
        ("1", ["Infinity"], "no weight"),
    ],
)
def test_what_cannot_be_allocated_is_refused(amount: str, weights: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(D(amount), [D(weight) for weight in weights], "USD")


def test_usage_of_another_period_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of the service period"):
        rate([used(D(1), 31 * 24)], PriceBook("org_1", []), MARCH)


def test_13_a_minimum_is_due_without_usage_and_for_the_part_of_the_period_it_was_agreed() -> None:
    half = MARCH.start + timedelta(days=15, hours=12)
    price = Price(
        "org_1", "api.requests", (), D(1), 1, "USD", half, minimum=D(100), included=D(10)
    )  # fmt: skip
    book = PriceBook("org_1", [price])
    (line,) = rate([], book, MARCH).lines
    assert (line.amount, line.period) == (D("50.00"), MARCH)
    (line,) = rate([used(D(65), 30 * 24)], book, MARCH).lines
    assert [(part.what, canonical(part.quantity), canonical(part.amount)) for part in line.parts] == [
        ("included", "5", "0"),
        ("usage", "60", "60"),
    ]
    assert rate([], book).lines == (), "without usage no month is named"
    assert rate([], PriceBook("org_1", [replace(price, valid_from=MARCH.end)]), MARCH).lines == ()


@given(quantities, priced())
def test_13_no_step_of_rating_uses_the_context_of_the_thread(quantity: Decimal, price: Price) -> None:
    """An operator between decimals (`a * b`, `sum`) rounds to the context's digits in silence; here it raises."""
    expected = rated(price, quantity)
    with localcontext(Context(prec=1, traps=[Inexact])):
        assert rated(price, quantity) == expected


def test_parts_reach_beyond_28_digits() -> None:
    """`decimal`'s own context would round here; a test that used it would not notice."""
    price = Price(
        "org_1", "api.requests", (), D("0.123456789012"), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC)
    )
    (part,) = parts(price, D("123456789012345678.123456789"), D(0), D(0))
    assert canonical(part.amount) == "15241578753196160.247297668887672002468"
