"""What a person reads of a draft invoice."""

from decimal import Decimal
from io import StringIO
from typing import Any

from rich.console import Console

from deploy.demo import show


def explained(quantity: str, period: dict[str, str] | None = None) -> dict[str, Any]:
    return {"period": period, "parts": [{"quantity": quantity, "unit_price": "0.01", "per": 1}]}


def charge(quantity: str, unrounded: str, amount: str) -> dict[str, Any]:
    return {"meter": "requests", "quantity": quantity, "amount_unrounded": unrounded, "amount": amount}


OPEN = charge("150", "1.5", "1.50") | {"explanation": explained("150")}
LATE = charge("25", "0.25", "0.25") | {
    "explanation": None,
    "before": {"explanation": explained("100")},
    "after": {"explanation": explained("125")},
}
NOTHING: dict[str, Any] = {
    "tenant": "acme", "currency": "USD", "period": {"start": None, "end": None}, "lines": [],
    "adjustments": [], "unpriced": [], "unrounded": "0", "total": "0.00",
}  # fmt: skip


def shown(draft: dict[str, Any]) -> str:
    out = StringIO()
    show.invoice(Console(file=out, width=160), draft)
    return out.getvalue()


def cells(text: str) -> list[list[str]]:
    """Rows below the heads of the columns."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def test_the_printed_lines_of_a_draft_with_late_usage_add_up_to_its_total() -> None:
    text = shown(
        NOTHING
        | {
            "period": {"start": "2026-06-30T22:00:00.000Z", "end": "2026-07-02T09:00:00.000Z"},
            "lines": [OPEN],
            "adjustments": [
                {
                    "adjusts": "INV-000007",
                    "service_period": {
                        "start": "2026-06-01T00:00:00.000Z",
                        "end": "2026-07-01T00:00:00.000Z",
                    },
                    "lines": [LATE],
                }
            ],
            "unpriced": [{"meter": "storage.peak", "quantity": "3"}],
            "unrounded": "1.75",
            "total": "1.75",
        }
    )
    assert "Draft invoice of acme, USD, 2026-06-30T22:00Z to 2026-07-02T09:00Z" in text
    *rows, total = cells(text)
    assert rows == [
        ["requests", "150", "150 × 0.01", "1.5", "1.50"],
        ["storage.peak", "3", "no price", "", ""],
        ["adjusts INV-000007", "", "2026-06-01 to 2026-07-01", "", ""],
        ["requests", "25", "125 × 0.01 instead of 100 × 0.01", "0.25", "0.25"],
    ]
    for column in (3, 4):
        assert sum(Decimal(row[column] or 0) for row in rows) == Decimal(total[column])


def test_a_draft_of_no_usage_has_no_period() -> None:
    text = shown(NOTHING | {"currency": None})
    assert text.splitlines()[0].strip() == "Draft invoice of acme"
    assert cells(text) == [["total", "", "", "0", "0.00"]]
