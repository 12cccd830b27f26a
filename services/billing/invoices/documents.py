"""The shape of what these routes answer, beside the issued documents themselves."""

from typing import Literal

from typing_extensions import TypedDict


class Period(TypedDict):
    start: str
    end: str


class InvoiceSummary(TypedDict):
    """An issued document without its lines; `sha256` is of its bytes."""

    id: str
    object: Literal["invoice", "adjustment"]
    status: Literal["final", "draft"]
    number: str
    reason: Literal["service_period", "late_usage", "price_fix"]
    adjusts: str | None
    price_fix: str | None
    service_period: Period
    currency: str | None
    total: str
    lines: int
    lake_version: int
    generation: int
    slice: int
    price_revision: int
    issued_at: str
    sha256: str


class Invoices(TypedDict):
    object: Literal["list"]
    data: list[InvoiceSummary]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Charge(TypedDict):
    """What one price charges for a service period."""

    price: str
    unit_price: str
    per: int
    quantity: str
    amount_unrounded: str
    amount: str
    explanation: dict[str, object]


class IssuedLine(TypedDict):
    """Of an adjustment `quantity` and amounts are the difference of `after` and `before`."""

    id: str
    meter: str
    dimensions: dict[str, str]
    holds_for: Literal["everybody", "you"]
    valid_from: str
    price: str
    unit_price: str
    per: int
    quantity: str
    amount_unrounded: str
    amount: str
    explanation: dict[str, object] | None
    before: Charge | None
    after: Charge | None


class UnpricedUsage(TypedDict):
    meter: str
    dimensions: dict[str, str]
    quantity: str


class Previous(TypedDict):
    number: str
    sha256: str


class Issued(TypedDict):
    """The issued document: these bytes never change, `ETag` is their SHA-256."""

    schema: Literal["headrace.invoice.v1"]
    object: Literal["invoice", "adjustment"]
    status: Literal["final", "draft"]
    id: str
    number: str
    tenant: str
    reason: Literal["service_period", "late_usage", "price_fix"]
    adjusts: str | None
    price_fix: str | None
    service_period: Period
    currency: str | None
    lines: list[IssuedLine]
    unpriced: list[UnpricedUsage]
    unrounded: str
    total: str
    rounding: str
    lake_version: int
    generation: int
    slice: int
    since_slice: int
    price_revision: int
    code_version: str
    issued_at: str
    previous: Previous | None


class Adjustments(TypedDict):
    """What was posted; nothing where every closed period is charged as it would be now."""

    object: Literal["list"]
    data: list[Issued]
    has_more: bool


class PriceFix(TypedDict):
    """`totals`: sum of all differences by currency. `reasons`: the safety bounds that it passes."""

    id: str
    object: Literal["price_fix"]
    state: Literal["proposed", "parked", "approved", "applied", "rejected"]
    price_revision: int
    tenants: list[str] | None
    reasons: list[str]
    totals: dict[str, str]
    items: int
    created_by: str
    created_at: str
    decided_by: str | None
    decided_at: str | None
    accepted: list[str]
    applied_by: str | None
    applied_at: str | None


class PriceFixApplied(PriceFix):
    """`posted`: adjustments that this request posted."""

    posted: int


class PriceFixes(TypedDict):
    object: Literal["list"]
    data: list[PriceFix]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PriceFixItem(TypedDict):
    """What changes in one closed service period."""

    id: str
    object: Literal["price_fix_item"]
    tenant: str
    service_period: Period
    adjusts: str
    from_revision: int
    generation: int
    slice: int
    currency: str | None
    total: str
    reasons: list[str]
    lines: list[IssuedLine]


class PriceFixItems(TypedDict):
    object: Literal["list"]
    data: list[PriceFixItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
