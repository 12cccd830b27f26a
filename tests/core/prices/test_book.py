"""Which price an hour of usage falls under."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from core.prices import EVERYBODY, Price, PriceBook, books

Y20, Y25, Y26 = (datetime(year, 1, 1, tzinfo=UTC) for year in (2020, 2025, 2026))
LIST = Price("*", "llm.tokens.input", (), Decimal("2.50"), 1_000_000, "USD", Y20, revision=1)


def found(rows: list[Price], dimensions: dict[str, str], at: datetime) -> Decimal | None:
    price = PriceBook("org_1", rows).find("llm.tokens.input", dimensions, at)
    return None if price is None else price.unit_price


def test_the_latest_start_that_has_come_wins() -> None:
    rows = [LIST, replace(LIST, unit_price=Decimal(3), valid_from=Y26)]
    assert found(rows, {}, Y25) == Decimal("2.50")
    assert found(rows, {}, Y26) == 3
    assert found(rows, {}, datetime(2019, 12, 31, 23, tzinfo=UTC)) is None


def test_an_end_is_exclusive_and_uncovers_what_held_before() -> None:
    rows = [LIST, replace(LIST, unit_price=Decimal(1), valid_from=Y25, valid_to=Y26)]
    assert found(rows, {}, datetime(2025, 12, 31, 23, tzinfo=UTC)) == 1
    assert found(rows, {}, Y26) == Decimal("2.50")


def test_more_dimensions_beat_a_later_start() -> None:
    model = replace(LIST, dimensions=(("model", "a"),), unit_price=Decimal(7))
    both = replace(LIST, dimensions=(("model", "a"), ("region", "eu")), unit_price=Decimal(8))
    rows = [LIST, model, both, replace(LIST, unit_price=Decimal(9), valid_from=Y25)]
    assert found(rows, {"model": "a"}, Y26) == 7
    assert found(rows, {"model": "a", "region": "eu"}, Y26) == 8
    assert found(rows, {"model": "a", "region": "us"}, Y26) == 7
    assert found(rows, {"model": "b"}, Y26) == 9


def test_a_tenants_own_price_beats_the_list_and_stays_its_own() -> None:
    rows = [replace(LIST, dimensions=(("model", "a"),)), replace(LIST, tenant="org_1", unit_price=Decimal(1))]
    assert found(rows, {"model": "a"}, Y26) == 1
    other = PriceBook("org_2", rows)
    price = other.find("llm.tokens.input", {"model": "a"}, Y26)
    assert price is not None
    assert price.tenant == "*"
    assert other.find("llm.tokens.input", {}, Y26) is None


def test_books_of_many_tenants_are_those_of_each() -> None:
    rows = [LIST, *(replace(LIST, tenant=f"org_{n}", unit_price=Decimal(n), revision=n + 1) for n in (1, 2))]
    book_of = books(rows)
    for name in ("org_1", "org_2", "org_3", EVERYBODY):
        one, alone = book_of(name), PriceBook(name, rows)
        assert (one.prices, one.edges(), one.revision) == (alone.prices, alone.edges(), alone.revision)
        assert one.find(LIST.meter, {}, Y26) == alone.find(LIST.meter, {}, Y26)
        assert one.as_of(1).prices == (LIST,)


def test_the_later_recorded_of_two_with_one_start_is_the_correction() -> None:
    wrong = replace(LIST, unit_price=Decimal(99), revision=2)
    right = replace(LIST, revision=3)
    assert found([right, wrong, LIST], {}, Y26) == Decimal("2.50")
    assert found([LIST, wrong], {}, Y26) == 99


def test_the_book_is_rated_as_it_was_known() -> None:
    wrong = replace(LIST, unit_price=Decimal(99), revision=2)
    right = replace(LIST, revision=5)
    book = PriceBook("org_1", [LIST, wrong, right, replace(LIST, tenant="org_2", revision=9)])

    def known(revision: int) -> Decimal | None:
        price = book.as_of(revision).find("llm.tokens.input", {}, Y26)
        return None if price is None else price.unit_price

    assert [known(revision) for revision in (0, 1, 2, 4, 5, 9)] == [
        None, Decimal("2.50"), 99, 99, Decimal("2.50"), Decimal("2.50"),
    ]  # fmt: skip
    assert (book.revision, book.as_of(4).revision, book.as_of(4).as_of(9).revision) == (5, 2, 2)
