"""Invoices as CSV, for spreadsheets. A line of the document is a row; text cannot become a formula."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Final

from core.invoices.document import Document

COLUMNS: Final = (
    "number", "object", "reason", "adjusts", "service_period_start", "service_period_end", "line", "meter",
    "dimensions", "holds_for", "price", "unit_price", "per", "quantity", "amount_unrounded", "amount", "currency",
    "issued_at",
)  # fmt: skip


def invoice(document: Document) -> str:
    """RFC 4180 with a header; unpriced usage follows the lines with no amount."""
    head = [document.number, document.object, document.reason, document.adjusts or "",
            document.service_period.start, document.service_period.end]  # fmt: skip
    tail = [document.currency or "", document.issued_at]
    rows: list[list[object]] = [
        [*head, line.id, line.meter, _text(line.dimensions), line.holds_for, line.price, line.unit_price, line.per,
         line.quantity, line.amount_unrounded, line.amount, *tail]
        for line in document.lines
    ]  # fmt: skip
    rows += [
        [*head, "", one.meter, _text(one.dimensions), "", "", "", "", one.quantity, "", "", *tail]
        for one in document.unpriced
    ]
    return table(COLUMNS, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A header and rows; numbers as they are, text that a spreadsheet would compute behind an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    text = value if isinstance(value, str) else str(value)
    if text[:1] in {"=", "+", "@", "\t", "\r"} or (text[:1] == "-" and not _is_number(text)):
        return f"'{text}"
    return text


def _is_number(text: str) -> bool:
    return text[1:].replace(".", "", 1).isdigit()


def _text(dimensions: dict[str, str]) -> str:
    return (
        json.dumps(dimensions, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if dimensions
        else ""
    )
