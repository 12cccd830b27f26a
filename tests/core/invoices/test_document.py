"""The document's bytes are one text for one content, and rating code of one version gives one amount."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from core.invoices.document import (
    CODE_VERSION,
    Document,
    DocumentError,
    Span,
    decode,
    number_of,
    number_text,
    sha256,
)
from core.invoices.periods import PeriodError, hours, month, name
from core.prices import Price, PriceBook, Tier
from core.rating import ServicePeriod, Usage, rate

MARCH = ServicePeriod(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))


def document(**fields: Any) -> Document:
    return Document(
        **{
            "object": "invoice", "id": "inv_1", "number": "INV-000007", "tenant": "org_ü", "reason": "service_period",
            "adjusts": None, "price_fix": None, "lines": [], "unpriced": [], "unrounded": "0", "total": "0.00",
            "service_period": Span("2026-03-01T00:00:00.000Z", "2026-04-01T00:00:00.000Z"), "currency": "USD",
            "lake_version": 1, "generation": 1, "slice": 2, "since_slice": 0, "price_revision": 3,
            "issued_at": "2026-04-02T00:00:00.000Z", "previous": None,
        }
        | fields
    )  # fmt: skip


def test_a_document_is_read_back_from_its_bytes_only() -> None:
    content = document().encode()
    assert decode(content) == document()
    assert content.startswith(b'{"adjusts":null,"code_version":')
    assert "org_ü".encode() in content
    for other in (
        content.replace(b'"total":"0.00"', b'"total": "0.00"'),
        content + b"\n",
        content.replace(b'"slice":2,', b""),
        content.replace(b'"slice":2', b'"slice":2,"more":1'),
        content.replace(b'"final"', b'"draft"'),
        content.replace(b"INV-000007", b"INV-x"),
        b"",
        b"\xff",
        b"[" * 100_000,
    ):
        with pytest.raises(DocumentError):
            decode(other)


def test_another_total_is_another_hash() -> None:
    assert sha256(document().encode()) != sha256(replace(document(), total="0.01").encode())


@pytest.mark.parametrize("number", [1, 12, 999_999, 1_000_000, 10**17])
def test_numbers_go_both_ways(number: int) -> None:
    assert number_of(number_text(number)) == number


@pytest.mark.parametrize(
    "text", ["", "7", "INV-", "INV-x", "inv-000001", "INV-٣", "INV- 1", "INV-1" + "0" * 20]
)
def test_what_is_no_number_names_nothing(text: str) -> None:
    assert number_of(text) is None


def test_periods_have_names() -> None:
    assert month("2026-03") == MARCH
    assert name(MARCH) == "2026-03"
    part = hours(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, 5, tzinfo=UTC))
    assert name(part) == "2026-03-01T00:00:00.000Z/2026-03-01T05:00:00.000Z"
    for text in ("2026-3", "2026-13", "26-03", "2026-03-01", "٢٠٢٦-03", ""):
        with pytest.raises(PeriodError):
            month(text)


def test_the_code_version_names_these_amounts() -> None:
    """Known amounts of every model. Where they change, what was issued cannot be computed again by this code:
    raise CODE_VERSION with it."""
    tiers = (Tier(Decimal(15), Decimal(10), Decimal(3)), Tier(None, Decimal("4.999")))
    prices = [
        Price(
            "org_1", f"meter.{model}.{int(included)}", (), Decimal("0.333"), 10, "USD",
            datetime(2026, 3, 11, 7, tzinfo=UTC), None, 1, f"price_{model}", model=model,
            tiers=tiers if model in {"graduated", "volume"} else (), included=included, minimum=minimum,
        )
        for model in ("flat", "graduated", "volume", "package")
        for included, minimum in ((Decimal(0), Decimal(0)), (Decimal(5), Decimal(100)))
    ]  # fmt: skip
    at = datetime(2026, 3, 20, tzinfo=UTC)
    usage = [Usage(price.meter, {}, at, Decimal("16.5")) for price in prices]
    rated = rate(usage, PriceBook("org_1", prices), MARCH)
    amounts = [f"{line.price.meter} {line.amount_unrounded} {line.amount}" for line in rated.lines]
    assert CODE_VERSION == "1"
    assert amounts == [
        "meter.flat.0 0.54945 0.55",
        "meter.flat.5 66.8010752690000 66.80",
        "meter.graduated.0 18.74985 18.75",
        "meter.graduated.5 66.801075269 66.80",
        "meter.package.0 0.666 0.67",
        "meter.package.5 66.801075269 66.80",
        "meter.volume.0 8.24835 8.25",
        "meter.volume.5 66.801075269 66.80",
    ]
