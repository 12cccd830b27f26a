"""The document that is issued: canonical JSON, the same bytes for the same content, never changed.

Quantities and amounts are canonical decimal text. Everything that is needed to compute an amount again
stands in it: generation and slice of the lake, price revision and rating code, and of each line the price and its explanation.
Documents of a tenant are a chain: each holds number and SHA-256 of the one before.
"""

import hashlib
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from core.clock import rfc3339
from core.rating import POLICY, ServicePeriod

SCHEMA: Final = "headrace.invoice.v1"
CODE_VERSION: Final = "1"
"""Of rating (`core/rating`, `core/prices/models.py`): raise it with any change after which the same usage
and prices give other amounts. A test compares known amounts."""

Reason = Literal["service_period", "late_usage", "price_fix"]


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    start: str
    end: str


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one price charges for one service period; `explanation` as `core.rating.explain` has it."""

    price: str
    unit_price: str
    per: int
    quantity: str
    amount_unrounded: str
    amount: str
    explanation: dict[str, Any]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`quantity` and amounts are what this document charges: for an adjustment the difference between
    `before` and `after`, either of which is null where the price charged nothing."""

    id: str
    meter: str
    dimensions: dict[str, str]
    holds_for: Literal["everybody", "you"]
    """Whose price: a list price, or the tenant's own."""
    valid_from: str
    price: str
    unit_price: str
    per: int
    quantity: str
    amount_unrounded: str
    amount: str
    explanation: dict[str, Any] | None
    """Of an invoice's line; an adjustment explains both sides."""
    before: Charge | None = None
    after: Charge | None = None


class Unpriced(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Usage that the price book had no price for: shown, not charged."""

    meter: str
    dimensions: dict[str, str]
    quantity: str


class Previous(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: str
    sha256: str


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An invoice (`reason` service_period) or an adjustment of one."""

    schema: Literal["headrace.invoice.v1"] = SCHEMA
    object: Literal["invoice", "adjustment"]
    status: Literal["final", "draft"] = "final"
    """`draft` where a dry run shows what would be issued."""
    id: str
    number: str
    tenant: str
    reason: Reason
    adjusts: str | None
    """Number of the invoice of the same service period."""
    price_fix: str | None
    service_period: Span
    currency: str | None
    lines: list[Line]
    unpriced: list[Unpriced]
    unrounded: str
    total: str
    rounding: str = POLICY
    lake_version: int
    generation: int
    """Of the usage tables; with `slice` it names the usage that was rated."""
    slice: int
    since_slice: int
    """Of late usage: the slice up to which the period was charged before; else 0."""
    price_revision: int
    code_version: str = CODE_VERSION
    issued_at: str
    previous: Previous | None

    def encode(self) -> bytes:
        """Keys sorted, no white space, UTF-8."""
        return msgspec.json.encode(self, order="sorted")


class DocumentError(ValueError):
    """Bytes that are no issued document; the message never quotes them."""


def decode(content: bytes) -> Document:
    """Read a document back. Raises: DocumentError, also where other bytes would say the same."""
    try:
        document = _DECODER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DocumentError("these bytes are no document of the schema headrace.invoice.v1") from None
    if document.status != "final" or number_of(document.number) is None:
        raise DocumentError("the document was never issued: it is a draft")
    if document.encode() != content:
        raise DocumentError("the document is not in its canonical form: it was changed after it was issued")
    return document


_DECODER: Final = msgspec.json.Decoder(Document)


def sha256(content: bytes) -> str:
    """Lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def number_text(number: int) -> str:
    """`INV-000012`. Numbers of a tenant have no gaps."""
    return f"INV-{number:06d}"


def number_of(text: str) -> int | None:
    """The other way; None for what is no number."""
    digits = text.removeprefix("INV-")
    return (
        int(digits) if digits != text and digits.isascii() and digits.isdigit() and len(digits) < 19 else None
    )


def span_of(period: ServicePeriod) -> Span:
    return Span(rfc3339(period.start), rfc3339(period.end))


def period_of(document: Document) -> ServicePeriod:
    span = document.service_period
    return ServicePeriod(datetime.fromisoformat(span.start), datetime.fromisoformat(span.end))
