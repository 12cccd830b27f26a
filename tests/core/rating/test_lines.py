"""Money is exact until the line is rounded, whatever order or pieces usage comes in."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.decimals import EXACT, canonical
from core.prices import Price, PriceBook
from core.rating import MixedCurrencyError, Usage, rate, round_amount

START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE = START + timedelta(hours=12)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def price(
    meter: str, unit_price: str, *, per: int = 1_000_000, valid_from: datetime = LONG_AGO, **more: object
) -> Price:
    fields: dict[str, object] = {"tenant": "*", "dimensions": (), "currency": "USD", **more}
    return Price(meter=meter, unit_price=Decimal(unit_price), per=per, valid_from=valid_from, **fields)  # type: ignore[arg-type]


SHIPPED = [price("llm.tokens.input", "2.50"), price("llm.tokens.output", "10.00")]

quantities = st.decimals(min_value=0, max_value=10**18, places=9, allow_nan=False, allow_infinity=False)
prices = st.decimals(min_value=0, max_value=10**6, places=12, allow_nan=False, allow_infinity=False)
usages = st.lists(
    st.builds(
        Usage,
        meter=st.sampled_from(["llm.tokens.input", "llm.tokens.output", "api.requests"]),
        dimensions=st.sampled_from([{}, {"model": "a"}, {"model": "a", "region": "eu"}]),
        period_start=st.integers(0, 23).map(lambda hour: START + hour * HOUR),
        quantity=quantities,
    ),
    max_size=30,
)


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    rows = [
        price("llm.tokens.input", str(draw(prices)), per=draw(st.sampled_from([1, 1000, 1024, 1_000_000]))),
        price("llm.tokens.input", str(draw(prices)), valid_from=CHANGE),
        price("llm.tokens.output", str(draw(prices)), per=8),
        price("llm.tokens.output", str(draw(prices)), dimensions=(("model", "a"),)),
    ]
    return PriceBook("org_1", rows)


def test_the_published_trace_costs_what_it_costs() -> None:
    rated = rate(
        [
            Usage("llm.tokens.input", {}, START, Decimal(18059974)),
            Usage("llm.tokens.output", {}, START, Decimal(245896)),
        ],
        PriceBook("org_1", SHIPPED),
    )
    assert canonical(rated.unrounded) == "47.608895"
    assert str(rated.total) == "47.61"
    assert [canonical(line.amount_unrounded) for line in rated.lines] == ["45.149935", "2.45896"]
    assert rated.currency == "USD"


@given(usages, books())
def test_lines_add_up_and_nothing_is_left_out(usage: list[Usage], book: PriceBook) -> None:
    rated = rate(usage, book)
    assert sum((line.amount for line in rated.lines), Decimal(0)) == rated.total
    total = Decimal(0)
    for quantity in [line.quantity for line in rated.lines] + [item.quantity for item in rated.unpriced]:
        total = EXACT.add(total, quantity)
    given_total = Decimal(0)
    for piece in usage:
        given_total = EXACT.add(given_total, piece.quantity)
    assert total == given_total
    for line in rated.lines:
        assert abs(EXACT.subtract(line.amount, line.amount_unrounded)) <= Decimal("0.005")


@given(usages, books(), st.data())
def test_a_period_costs_the_same_whole_or_in_parts_and_in_any_order(
    usage: list[Usage], book: PriceBook, data: st.DataObject
) -> None:
    whole = rate(usage, book)
    cut = data.draw(st.integers(0, len(usage)))
    parts = [rate(usage[:cut], book), rate(usage[cut:], book)]
    assert EXACT.add(parts[0].unrounded, parts[1].unrounded) == whole.unrounded
    assert rate(data.draw(st.permutations(usage)), book) == whole


@given(quantities, quantities, books())
def test_splitting_one_event_in_two_changes_nothing(one: Decimal, two: Decimal, book: PriceBook) -> None:
    apart = [Usage("llm.tokens.input", {}, START, one), Usage("llm.tokens.input", {}, START, two)]
    together = [Usage("llm.tokens.input", {}, START, EXACT.add(one, two))]
    assert rate(apart, book) == rate(together, book)


def test_each_hour_has_the_price_of_that_hour() -> None:
    book = PriceBook(
        "org_1", [price("api.requests", "1", per=1), price("api.requests", "2", per=1, valid_from=CHANGE)]
    )
    usage = [Usage("api.requests", {}, START + hour * HOUR, Decimal(1)) for hour in range(24)]
    rated = rate(usage, book)
    assert [(line.quantity, line.amount) for line in rated.lines] == [
        (Decimal(12), Decimal(12)),
        (Decimal(12), Decimal(24)),
    ]
    assert book.edges() == [LONG_AGO, CHANGE]


def test_usage_without_a_price_is_shown() -> None:
    rated = rate([Usage("api.requests", {"route": "/v1"}, START, Decimal(3))], PriceBook("org_1", SHIPPED))
    assert rated.lines == ()
    assert [(item.meter, item.dimensions, item.quantity) for item in rated.unpriced] == [
        ("api.requests", (("route", "/v1"),), Decimal(3))
    ]
    assert rated.total == 0


def test_currencies_are_never_mixed() -> None:
    book = PriceBook("org_1", [SHIPPED[0], price("llm.tokens.output", "1", currency="EUR")])
    usage = [Usage(meter, {}, START, Decimal(1)) for meter in ("llm.tokens.input", "llm.tokens.output")]
    with pytest.raises(MixedCurrencyError, match="EUR, USD"):
        rate(usage, book)


@pytest.mark.parametrize(
    ("value", "currency", "rounded"),
    [
        ("0.125", "USD", "0.13"),
        ("0.135", "USD", "0.14"),
        ("-0.125", "USD", "-0.13"),
        ("0.1249999999999999999999999999999999999999", "USD", "0.12"),
        ("0.5", "JPY", "1"),
        ("0.0005", "KWD", "0.001"),
        ("99999999999999999999999999999999999.995", "USD", "100000000000000000000000000000000000.00"),
        ("0", "USD", "0.00"),
    ],
)
def test_rounding_is_commercial_and_knows_the_currency(value: str, currency: str, rounded: str) -> None:
    assert str(round_amount(Decimal(value), currency)) == rounded
