"""The shape of what traces answer."""

from typing import Literal

from typing_extensions import TypedDict


class Coordinates(TypedDict):
    """Where a record stands: in the topic, in the order of landing, and in which file of the lake's table
    `usage_events` of a generation."""

    topic: Literal["usage.records"]
    topic_id: str
    partition: int
    offset: int
    slice: int
    generation: int
    object: str


class TracedEvent(TypedDict):
    """A landed record. `place` is its cursor. Of a void, `quantity` is what it takes out."""

    object: Literal["usage_event"]
    place: str
    source: str | None
    id: str | None
    kind: str | None
    time: str | None
    received: str
    meter: str | None
    quantity: str | None
    dimensions: dict[str, str] | None
    subject: str | None
    coordinates: Coordinates


class Amounts(TypedDict):
    quantity: str
    amount_unrounded: str
    amount: str


class Proof(TypedDict):
    """The line computed again from the landed rows alone. `verified` is true where that gives the same line to the
    last digit, explanation included; `reason` says why not."""

    verified: bool
    reason: str | None
    events: int
    charged: Amounts
    recomputed: Amounts | None
    generation: int
    slice: int
    since_slice: int
    price_revision: int
    code_version: str


class TracedLine(TypedDict):
    """`invoice` and `number` are null for a line of the draft."""

    invoice: str | None
    number: str | None
    line: int
    reason: str
    meter: str
    dimensions: dict[str, str]
    currency: str | None


class LineEvents(TypedDict):
    """The events of a line, in the order they landed. `proof` comes with the first page."""

    object: Literal["list"]
    line: TracedLine
    proof: Proof | None
    data: list[TracedEvent]
    first_id: str | None
    last_id: str | None
    has_more: bool


class EventLine(TypedDict):
    """A line that an event is in. `charged`: it came into the charge here; `repriced`: a price fix changed what it
    costs; `taken_back`: it was taken out of the charge again. `line` is null where the document has no line for
    it because it changes nothing."""

    invoice: str | None
    number: str | None
    line: int | None
    reason: str
    effect: Literal["charged", "repriced", "taken_back", "draft"]
    meter: str
    dimensions: dict[str, str]
    amount: str | None


State = Literal[
    "invoiced", "not_invoiced", "unpriced", "no_difference", "voided", "void", "checkpoint", "duplicate", "quarantined",
    "rejected", "not_published", "not_landed", "lost",
]  # fmt: skip


class EventTrace(TypedDict):
    """What became of an event: exactly one `state`, and the lines it is in."""

    object: Literal["usage_event_trace"]
    state: State
    detail: str
    code: str | None
    event: TracedEvent | None
    other: TracedEvent | None
    lines: list[EventLine]


class LineCheck(TypedDict):
    line: str
    meter: str
    dimensions: dict[str, str]
    equal: bool
    issued: str | None
    recomputed: str | None


class Verification(TypedDict):
    """An issued document computed again; `differing` names the lines that are not the same."""

    object: Literal["invoice_verification"]
    invoice: str
    number: str
    verified: bool
    reason: str | None
    lines: int
    total: str
    recomputed_total: str | None
    differing: list[LineCheck]
    generation: int
    slice: int
    price_revision: int
    code_version: str


class Records(TypedDict):
    """landed = duplicates + quarantined + rejected + counted; events = counted - checkpoints - 2 × voids, and as
    many are in the published cells. Records that could not be read have no time: they belong to the period in
    which they were received."""

    landed: int
    duplicates: int
    quarantined: int
    rejected: int
    counted: int
    checkpoints: int
    voids: int
    events: int
    published: int
    difference: int


class MeterSums(TypedDict):
    """`counted` from the landed records, `published` from the cells that are billed."""

    meter: str
    counted: str
    published: str
    difference: str


class MoneySums(TypedDict):
    """rated = invoiced + late_usage + price_fixes + not_invoiced + difference. `rated` is what the landed records come
    to: closed periods at the prices they were last charged at, open usage at those of now."""

    currency: str | None
    rated: str
    invoiced: str
    late_usage: str
    price_fixes: str
    not_invoiced: str
    difference: str


class IssuedTotal(TypedDict):
    number: str
    reason: str
    total: str


class UnpricedSum(TypedDict):
    meter: str
    dimensions: dict[str, str]
    quantity: str


class Span(TypedDict):
    start: str
    end: str


class Reconciliation(TypedDict):
    """From the records of a period to what is charged for it. `reconciled` is true where every difference is zero."""

    object: Literal["reconciliation"]
    tenant: str
    period: Span
    reconciled: bool
    records: Records
    usage: list[MeterSums]
    money: MoneySums
    documents: list[IssuedTotal]
    unpriced: list[UnpricedSum]
    generation: int
    slice: int
    price_revision: int
