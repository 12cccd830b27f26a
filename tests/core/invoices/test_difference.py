"""rate(now) − charged, on whole periods: whatever the order of documents, the sums are what rating says now."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from core.invoices.difference import charged, charges, difference, lines, sums
from core.invoices.document import Document
from core.prices import Price, PriceBook, Tier
from core.rating import Rated, ServicePeriod, Usage, rate
from tests.core.invoices.test_document import document

MARCH = ServicePeriod(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
AT = datetime(2026, 3, 5, tzinfo=UTC)
VOLUME = (Tier(Decimal(15), Decimal(10)), Tier(None, Decimal(5)))


def book(unit_price: str = "10", *, tiered: bool = True, valid_from: datetime = MARCH.start) -> PriceBook:
    price = Price(
        "org_1", "m", (), Decimal(unit_price), 1, "USD", valid_from, None, 1, "price_1",
        model="volume" if tiered else "flat", tiers=VOLUME if tiered else (),
    )  # fmt: skip
    return PriceBook("org_1", [price])


def rated(quantity: str, of: PriceBook) -> Rated:
    return rate([Usage("m", {}, AT, Decimal(quantity))], of, MARCH)


def invoice(of: Rated) -> Document:
    return document(lines=lines(of, "inv_1"))


def adjustment(before: list[Document], now: Rated) -> Document:
    found = difference(charged(before), charges(now), "inv_2")
    return document(object="adjustment", reason="late_usage", lines=found)


def test_the_worked_example() -> None:
    first = invoice(rated("15", book()))
    second = adjustment([first], rated("16", book()))
    assert sums(second.lines, "USD") == ("-70", "-70.00")
    assert difference(charged([first, second]), charges(rated("16", book())), "") == []


def test_a_corrected_price_is_the_same_line() -> None:
    first = invoice(rated("4", book("10", tiered=False)))
    (line,) = adjustment([first], rated("4", book("12.5", tiered=False))).lines
    assert line.before is not None
    assert line.after is not None
    assert (line.before.unit_price, line.after.unit_price) == ("10", "12.5")
    assert (line.quantity, line.amount) == ("0", "10.00")


def test_a_price_of_another_date_takes_the_old_line_back() -> None:
    """And putting the first one back leaves nothing of the second."""
    later = datetime(2026, 3, 2, tzinfo=UTC)
    old, new = rated("4", book(tiered=False)), rated("4", book("3", tiered=False, valid_from=later))
    first = invoice(old)
    second = adjustment([first], new)
    assert [(one.valid_from, one.amount, one.after is None) for one in second.lines] == [
        ("2026-03-01T00:00:00.000Z", "-40.00", True),
        ("2026-03-02T00:00:00.000Z", "12.00", False),
    ]
    third = adjustment([first, second], old)
    assert [(one.amount, one.before is None) for one in third.lines] == [("40.00", True), ("-12.00", False)]
    assert {key[2] for key in charged([first, second, third])} == {"2026-03-01T00:00:00.000Z"}


QUANTITIES = st.lists(st.decimals(min_value=0, max_value=40, places=3), min_size=1, max_size=6)


@given(QUANTITIES, st.booleans())
def test_documents_add_up_to_rating_from_scratch(quantities: list[Decimal], tiered: bool) -> None:
    """Totals after each step, whether the quantity grows or shrinks (a void)."""
    documents = [invoice(rated(str(quantities[0]), book(tiered=tiered)))]
    for quantity in quantities[1:]:
        documents.append(adjustment(documents, rated(str(quantity), book(tiered=tiered))))
    now = rated(str(quantities[-1]), book(tiered=tiered))
    each = [sums(one.lines, "USD") for one in documents]
    assert sum(Decimal(total) for _, total in each) == now.total
    assert sum(Decimal(unrounded) for unrounded, _ in each) == now.unrounded
