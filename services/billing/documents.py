"""The shape of what billing answers. Quantities and amounts are canonical decimal text."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from core.rating import Explanation
from services.billing.invoices import documents as invoices


class Verdict(TypedDict):
    """`code` and `message` say why an event was refused."""

    index: int
    id: str | None
    status: Literal["accepted", "refused"]
    code: NotRequired[str]
    message: NotRequired[str]


class Verdicts(TypedDict):
    accepted: int
    refused: int
    verdicts: list[Verdict]


class Replaced(TypedDict):
    source: str
    id: str


class UsageReplacement(TypedDict):
    """Ids of the two records that were sent: the void and the event."""

    object: Literal["usage_replacement"]
    replaces: Replaced
    void: str
    event: str


class UsageImport(TypedDict):
    id: str
    object: Literal["usage_import"]
    source: str
    period_start: str
    period_end: str


class UsageCell(TypedDict):
    """Usage of one meter; of one period and one set of dimensions where a grain was asked for."""

    meter: str
    unit: str | None
    quantity: str
    events: int
    period_start: NotRequired[str]
    period_end: NotRequired[str]
    dimensions: NotRequired[dict[str, str]]


class UsagePeriod(TypedDict):
    """Usage of one meter in one period, over all dimensions: not always the sum of its cells."""

    period_start: str
    meter: str
    quantity: str


class AsOf(TypedDict):
    """Usage in front of these offsets of the topic `usage.records` is in the answer."""

    topic_id: str | None
    offsets: dict[str, int]


Usage = TypedDict(
    "Usage",
    {
        "object": Literal["usage"],
        "tenant": str,
        "grain": Literal["total", "hour", "day"],
        "from": str | None,
        "to": str | None,
        "quantities": dict[str, str],
        "periods": list[UsagePeriod],
        "data": list[UsageCell],
        "live": bool,
        "lake_version": int | None,
        "as_of": AsOf,
    },
)
"""`quantities`: each meter as a whole; `periods`: each meter in each period, over all dimensions (none for grain
`total`). `live`: everything up to now is in it. `lake_version`: of the published cells beneath."""


class MeterShown(TypedDict):
    """`source`: the service of the platform that sends it, null for what only senders of your own do. `measured`:
    the dimension that the aggregation reads and no cell is grouped by; every event must have it."""

    name: str
    object: Literal["meter"]
    unit: str
    what: str
    source: str | None
    dimensions: list[str]
    measured: str | None
    aggregation: str
    is_summable: bool


class Meters(TypedDict):
    object: Literal["list"]
    data: list[MeterShown]
    has_more: bool


class TierShown(TypedDict):
    """`up_to` belongs to the tier; null in the last, which has no end. `fee` is charged once."""

    up_to: str | None
    unit_price: str
    fee: str


class PriceShown(TypedDict):
    """`unit_price` for each `per` units of usage that has these dimensions, by the model; of the first
    tier where there are `tiers`. `included` units of a service period are free, `minimum` is due for it.
    """

    id: str
    object: Literal["price"]
    holds_for: Literal["everybody", "you"]
    meter: str
    dimensions: dict[str, str]
    model: str
    unit_price: str
    per: int
    tiers: list[TierShown]
    included: str
    minimum: str
    currency: str
    valid_from: str
    valid_to: str | None
    revision: int
    recorded_at: str | None
    holds_now: bool


class Prices(TypedDict):
    object: Literal["list"]
    data: list[PriceShown]
    has_more: bool


class Period(TypedDict):
    """From the first hour with usage to the end of the last; both null where there is none."""

    start: str | None
    end: str | None


class InvoiceLine(TypedDict):
    meter: str
    dimensions: dict[str, str]
    quantity: str
    unit_price: str
    per: int
    price: str
    amount_unrounded: str
    amount: str
    explanation: Explanation


class UnpricedUsage(TypedDict):
    """Usage that the price book has no price for: shown, not charged."""

    meter: str
    dimensions: dict[str, str]
    quantity: str


class DraftAdjustment(TypedDict):
    """What a closed period would owe or get back, by usage that landed after it was closed."""

    adjusts: str
    reason: Literal["late_usage"]
    service_period: invoices.Period
    lines: list[invoices.IssuedLine]
    unrounded: str
    total: str


class DraftInvoice(TypedDict):
    """All usage that is not invoiced. `unrounded` and `total` are the sums of the lines and adjustments; a line
    is rounded once, by `rounding`."""

    object: Literal["invoice"]
    status: Literal["draft"]
    tenant: str
    period: Period
    currency: str | None
    lines: list[InvoiceLine]
    adjustments: list[DraftAdjustment]
    unpriced: list[UnpricedUsage]
    unrounded: str
    total: str
    rounding: str
    lake_version: int | None
    generation: int | None
    slice: int | None
    price_revision: int


class Fates(TypedDict):
    """Of the counted records `voids` took an event out again and `checkpoints` added nothing: cells hold
    `counted` - `checkpoints` - 2 × `voids` events."""

    landed: int
    counted: int
    duplicates: int
    quarantined: int
    rejected: int
    voids: int
    checkpoints: int


class PartitionFates(Fates):
    """`holds` where every record of the partition has one fate."""

    topic_id: str
    partition: int
    lake_version: int
    holds: bool


class TenantFates(Fates):
    """Of one organisation (`-` for records that name none) over all partitions, beside the events in its cells."""

    tenant: str
    hour_events: int
    day_events: int
    holds: bool


class MeterOfPeriod(TypedDict):
    """What a month holds of a meter, added up from hours and, apart from them, from days; quantities are null where
    they cannot be added up."""

    tenant: str
    meter: str
    events: int
    quantity: str | None
    day_events: int
    day_quantity: str | None
    holds: bool


class Check(TypedDict):
    name: str
    holds: bool


class LostRange(TypedDict):
    """Offsets that were gone from the topic before they landed, as a person accepted it. `end_offset` is null
    where nobody knows it."""

    topic_id: str
    partition: int
    first_offset: int
    end_offset: int | None
    kind: str
    reason: str
    accepted_by: str
    accepted_at: str


class UsageOfNobody(TypedDict):
    """Counted events that name an organisation which does not exist, and the hours they lie in."""

    tenant: str
    events: int
    first_hour: str
    last_hour: str


class Invariants(TypedDict):
    """`tenant` is null where the owner of the platform asked for all records; only then `lost` and `nobodys` are filled.
    `tenants` lists a thousand at most, those that do not agree first; `meters` only where a `period` was named.
    It all speaks of the published cells: `lake_version` and the last `slice` in them."""

    object: Literal["invariants"]
    tenant: str | None
    period: str | None
    partitions: list[PartitionFates]
    totals: Fates
    tenants: list[TenantFates]
    has_more_tenants: bool
    meters: list[MeterOfPeriod]
    lost: list[LostRange]
    nobodys: list[UsageOfNobody]
    checks: list[Check]
    lake_version: int | None
    slice: int | None
    holds: bool


class Coordinates(TypedDict):
    """Where a record stands in the topic, and in which slice it landed."""

    topic_id: str
    partition: int
    offset: int
    slice: int


class QuarantinedRecord(TypedDict):
    """A record that landed and was not counted. `version` is what it says and, for a conflict, `counted`
    what the counted record of the same source and id says: `time`, `subject` and `data` of the contract.
    `sent` names the records that accepting it sent; `bytes` is the size of one that could not be read."""

    id: str
    object: Literal["quarantined_record"]
    tenant: str
    state: Literal["open", "accepted", "rejected"]
    fate: str
    code: str
    reason: str
    kind: str | None
    received: str
    source: str | None
    event_id: str | None
    version: dict[str, Any] | None
    counted: dict[str, Any] | None
    bytes: int | None
    acceptable: bool
    coordinates: Coordinates
    decided_by: str | None
    decided_at: str | None
    sent: dict[str, str] | None


class QuarantinePage(TypedDict):
    object: Literal["list"]
    data: list[QuarantinedRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CheckedCheckpoint(TypedDict):
    """What a producer said and what landed of it. Numbers are [first, last], both included. `missing` did not
    land; under a `doubled` one several events count; a `repeated` one came again and was counted once, which
    is harmless. `named` is what was wanting at `named_at`; `closed_at`, since when it is complete."""

    id: str
    object: Literal["usage_checkpoint"]
    first: int
    last: int
    received: str
    state: str
    missing: list[list[int]]
    doubled: list[list[int]]
    repeated: list[list[int]]
    missing_events: int
    named: dict[str, Any] | None
    named_at: str | None
    closed_at: str | None


class UsageProducer(TypedDict):
    """One life (`incarnation`) of a producer. `state`: incomplete where a checkpoint is, else that of the newest
    checkpoint (waiting, complete), or unclaimed where there is none. `open` checkpoints lack `missing` events."""

    id: str
    object: Literal["usage_producer"]
    tenant: str
    producer: str
    incarnation: str
    state: str
    last_sequence: int
    first_received: str
    last_received: str
    checkpoints: int
    open: int
    missing: int
    data: list[CheckedCheckpoint]


class ProducerPage(TypedDict):
    object: Literal["list"]
    data: list[UsageProducer]
    first_id: str | None
    last_id: str | None
    has_more: bool
