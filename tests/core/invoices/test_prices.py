"""At which prices a period was charged, where rows of them are gone from the book."""

from dataclasses import replace
from decimal import Decimal

import pytest

from core.invoices.difference import lines
from core.invoices.document import Document
from core.invoices.issuing import InvoiceError
from core.invoices.prices import charged_at
from core.prices import Price, PriceBook
from core.rating import Usage, rate
from tests.core.invoices.test_difference import AT, MARCH
from tests.core.invoices.test_document import document

USAGE = [Usage("m", {}, AT, Decimal(4))]


def row(revision: int, unit_price: str, **more: object) -> Price:
    made = Price(
        "org_1", "m", (), Decimal(unit_price), 1, "USD", MARCH.start, None, revision, f"price_{revision}"
    )
    return replace(made, **more)  # type: ignore[arg-type]


def book(*rows: Price) -> PriceBook:
    return PriceBook("org_1", rows)


def invoice(of: PriceBook) -> Document:
    return document(lines=lines(rate(USAGE, of, MARCH), "inv_1"), price_revision=of.revision)


FIRST, WRONG, RIGHT = row(1, "2"), row(2, "3"), row(3, "2")


def test_a_later_correction_changes_nothing() -> None:
    charged = invoice(book(FIRST, WRONG))
    assert charged_at([charged], book(FIRST, WRONG, RIGHT)) == 2


def test_an_equal_row_that_was_corrected_is_not_the_one_that_is_gone() -> None:
    charged = invoice(book(FIRST, WRONG, RIGHT))
    with pytest.raises(
        InvoiceError, match=r"revision 3.*ends at revision 2.*of m from 2026-03-01.* at 2 for 1"
    ) as raised:
        charged_at([charged], book(FIRST, WRONG))
    assert raised.value.code == "prices_went_back"
    assert charged_at([charged], book(FIRST)) == 3, "what stands is equal"


def test_the_first_revision_by_which_they_stand_again() -> None:
    charged = invoice(book(FIRST, WRONG))
    for other in ({"per": 1000}, {"model": "package"}, {"meter": "n"}, {"tenant": "*"}):
        with pytest.raises(InvoiceError):
            charged_at([charged], book(FIRST, row(4, "3", **other)))
    back = (FIRST, row(4, "1"), row(5, "3", id="again"), row(6, "7"))
    assert charged_at([charged], book(*back)) == 5
