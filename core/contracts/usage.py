"""Contract v1 of `usage.records`: CloudEvents 1.0 events of three types.

One parser serves the API that accepts events and the slice that lands them, so what the API let
through can only be refused at landing if somebody else wrote it to the topic.

A metered fact:

    {"specversion": "1.0", "type": "headrace.usage.v1", "id": "…", "source": "crm/eu-1",
     "time": "2026-02-18T12:00:00.000Z", "tenant": "org_…", "subject": "cus_…",
     "data": {"meter": "llm.tokens.input", "quantity": "1523", "dimensions": {"model": "m"}},
     "producer": "crm-7", "incarnation": "0198…", "sequence": 17}

A void takes one that was sent before out of all sums again; replacing one is a void and a new event
under another id. Send it under the key of the event (so with its `subject`), and it lands behind it:

    {…, "type": "headrace.usage.void.v1", "data": {"source": "crm/eu-1", "id": "…"}}

A checkpoint says what a producer has sent: all sequence numbers from `first` to `last`, once each. It
is sent after the log acknowledged those events. A process that restarts, and does not know where it
was, begins a new `incarnation` and may number from 1 again:

    {…, "type": "headrace.usage.checkpoint.v1",
     "data": {"producer": "crm-7", "incarnation": "0198…", "first": 1, "last": 100, "count": 100,
              "hash": "SHA-256 over the 16-byte identities in the order of sequence, in hex"}}

Quantities are decimal strings because JSON numbers are floats to most readers. No free text: what
lands is kept for years and never rewritten (law 10). A meter that counts different values, or weighs its
quantities, names the dimension with the value or the weight (`measured` of GET /api/v1/meters); every one
of its events must have it, as an id or hash or as a plain decimal.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from core import aggregation
from core.ids import identity, length_prefixed
from core.meters import METERS, Aggregation, Meter

TYPE: Final = "headrace.usage.v1"
VOID_TYPE: Final = "headrace.usage.void.v1"
CHECKPOINT_TYPE: Final = "headrace.usage.checkpoint.v1"
MAX_AHEAD: Final = timedelta(minutes=5)
MAX_AGE: Final = timedelta(days=400)
"""A live event outside these limits is refused by the API and quarantined at landing. An import
declares its source and period beforehand (POST /api/v1/usage/imports) instead and carries its `importid`;
an event whose `importid` was not declared, or not for its source and time, meets the same."""

_QUANTITY = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,9})?", re.ASCII)
_QUOTED = re.compile(r"Invalid enum value .*(?= - at `\$)", re.DOTALL)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Incarnation = Annotated[str, msgspec.Meta(max_length=64)]
"""Names one life of a producer; empty for one that numbers on after each restart."""
Sequence = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
"""Whole numbers that every reader of JSON holds exactly."""


class ContractError(Exception):
    """An event that cannot be counted.

    `code` is stable (programs read it), `message` says what to change and never quotes content.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class UsageData(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    meter: Short
    quantity: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    dimensions: Annotated[dict[Short, Name], msgspec.Meta(max_length=16)] = {}


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Names an event of the same tenant."""

    source: Name
    id: Name


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What a producer says it has sent."""

    producer: Short
    first: Sequence
    last: Sequence
    count: Sequence
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    incarnation: Incarnation = ""


class Envelope(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True, kw_only=True
):
    """What records of all types have."""

    id: Name
    source: Name
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: Short
    specversion: Literal["1.0"]
    subject: Annotated[str, msgspec.Meta(max_length=256)] = ""
    importid: Annotated[str, msgspec.Meta(max_length=64)] = ""
    datacontenttype: Literal["application/json", ""] = ""

    @property
    def key(self) -> bytes:
        """Key of the record in `usage.records`."""
        return f"{self.tenant}|{self.subject}".encode()

    def encode(self) -> bytes:
        return _ENCODER.encode(self)


class UsageEvent(
    Envelope, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True, kw_only=True
):
    """A metered fact. `producer` and `sequence` are for producers that send checkpoints."""

    data: UsageData
    type: Literal["headrace.usage.v1"]
    producer: Annotated[str, msgspec.Meta(max_length=128)] = ""
    incarnation: Incarnation = ""
    sequence: Sequence | None = None

    @property
    def identity(self) -> bytes:
        return identity(self.tenant, self.source, self.id)


class VoidEvent(
    Envelope, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True, kw_only=True
):
    """Takes an event out of all sums."""

    data: Reference
    type: Literal["headrace.usage.void.v1"]

    @property
    def identity(self) -> bytes:
        """By what it voids, not by its id: the second void of one event is a duplicate."""
        return void_identity(self.tenant, self.data.source, self.data.id)

    @property
    def reference(self) -> bytes:
        """Identity of the event it voids."""
        return identity(self.tenant, self.data.source, self.data.id)


class Checkpoint(
    Envelope, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True, kw_only=True
):
    """What a producer says it has sent."""

    data: Claim
    type: Literal["headrace.usage.checkpoint.v1"]

    @property
    def identity(self) -> bytes:
        """Apart from those of events, so that no void can name it."""
        return _digest("checkpoint", self.tenant, self.source, self.id)


UsageRecord = UsageEvent | VoidEvent | Checkpoint
"""A record of `usage.records`."""

T = TypeVar("T", bound=UsageRecord)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256(length_prefixed(parts)).digest()[:16]


def void_identity(tenant: str, source: str, event_id: str) -> bytes:
    """Identity of the void that takes this event out, if there is one."""
    return _digest("void", tenant, source, event_id)


def identities_hash(identities: Iterable[bytes]) -> str:
    """`hash` of a checkpoint.

    Args:
        identities: of its events, 16 bytes each, in the order of their sequence.
    """
    return hashlib.sha256(b"".join(identities)).hexdigest()


class _Typed(msgspec.Struct):
    type: Any = None


_DECODER = msgspec.json.Decoder(UsageEvent)
_TYPED_DECODER = msgspec.json.Decoder(_Typed)
_OTHERS: Mapping[str, type[VoidEvent] | type[Checkpoint]] = {
    VOID_TYPE: VoidEvent,
    CHECKPOINT_TYPE: Checkpoint,
}
_OTHER_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    VOID_TYPE: msgspec.json.Decoder(VoidEvent),
    CHECKPOINT_TYPE: msgspec.json.Decoder(Checkpoint),
}
_ENCODER = msgspec.json.Encoder()
_CANONICAL = msgspec.json.Encoder(order="deterministic")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Whole microseconds since 1970 UTC, without a float on the way."""
    return (instant - _EPOCH) // _MICROSECOND


def dimensions_text(dimensions: dict[str, str]) -> str:
    """Canonical JSON: equal dimensions are equal text, whatever their order."""
    return _dimensions_text(tuple(dimensions.items())) if dimensions else "{}"


@lru_cache(maxsize=4096)
def _dimensions_text(items: tuple[tuple[str, str], ...]) -> str:
    return _CANONICAL.encode(dict(items)).decode()


def canonical_quantity(text: str) -> str:
    """`1.50` and `1.5` are one quantity."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_record(value: bytes) -> UsageRecord:
    """Read one record of `usage.records`, whatever its type.

    Raises:
        ContractError: `unreadable` (not JSON, not UTF-8), `schema` (wrong type, missing or unknown
            field), `unknown_meter`, `quantity`, `dimension`, `time`, `producer`, `checkpoint`.
    """
    try:
        return _checked(_decoded(value, _DECODER))
    except ContractError as error:
        other = _OTHER_DECODERS.get(_type_of(value)) if error.code == "schema" else None
        if other is None:
            raise
    return _checked(_decoded(value, other))


def _decoded(value: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise ContractError("schema", _without_content(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ContractError("unreadable", "the record is not one JSON object in UTF-8") from None


def parse(value: bytes) -> UsageEvent:
    """Read a usage event; a record of another type is refused as `schema`. Raises: ContractError."""
    event = parse_record(value)
    if not isinstance(event, UsageEvent):
        raise ContractError("schema", "this is not a usage event")
    return event


def convert_record(value: object) -> UsageRecord:
    """`parse_record` of an object that is already out of JSON (an element of a batch)."""
    named = value.get("type") if isinstance(value, dict) else None
    wanted = _OTHERS.get(named, UsageEvent) if isinstance(named, str) else UsageEvent
    return _checked(_converted(value, wanted))


def convert(value: object) -> UsageEvent:
    """`parse` of an object that is already out of JSON."""
    event = _converted(value, UsageEvent)
    check(event)
    return event


def _converted(value: object, wanted: type[T]) -> T:
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as error:
        raise ContractError("schema", _without_content(str(error))) from None


def _type_of(value: bytes) -> str:
    """The type that a record names, empty where it names none or cannot be read."""
    try:
        named = _TYPED_DECODER.decode(value).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""


def _checked(event: UsageRecord) -> UsageRecord:
    if isinstance(event, UsageEvent):
        check(event)
        return event
    if isinstance(event, Checkpoint) and event.data.count != event.data.last - event.data.first + 1:
        raise ContractError(
            "checkpoint", "`data.count` must be `last` - `first` + 1: every number is used, once"
        )
    _check_envelope(event, f"{event.data.source}{event.data.id}" if isinstance(event, VoidEvent) else
                    f"{event.data.producer}{event.data.incarnation}")  # fmt: skip
    return event


def check(event: UsageEvent) -> None:
    """The rules that types cannot say. Raises: ContractError."""
    meter = METERS.get(event.data.meter)
    if meter is None:
        raise ContractError("unknown_meter", "`data.meter` is not a registered meter; see GET /api/v1/meters")
    if _QUANTITY.fullmatch(event.data.quantity) is None:
        raise ContractError(
            "quantity",
            '`data.quantity` must be a plain decimal string such as "12.5": not negative, no exponent, '
            "at most 18 digits before and 9 after the point",
        )
    if event.data.dimensions and not meter.dimensions.issuperset(event.data.dimensions):
        known = ", ".join(sorted(meter.dimensions)) or "none"
        raise ContractError(
            "dimension", f"`data.dimensions` has a name this meter does not know; known: {known}"
        )
    if meter.measured and (problem := not_measurable(meter, event.data.quantity, event.data.dimensions)):
        raise ContractError("dimension", problem)
    if bool(event.producer) != (event.sequence is not None) or (event.incarnation and not event.producer):
        raise ContractError("producer", "`producer` and `sequence` come together, `incarnation` with both")
    _check_envelope(event, f"{event.producer}{event.incarnation}{''.join(event.data.dimensions.values())}")


def not_measurable(meter: Meter, quantity: str, dimensions: Mapping[str, str]) -> str:
    """Why an event cannot be measured by the dimension that its meter reads; empty where it can.

    Args:
        quantity: as the contract has it; a unique count does not look at it.
    """
    name = meter.measured
    value = dimensions.get(name)
    if value is None:
        return f"this meter reads the dimension `{name}`; every event must have it"
    if meter.aggregation is Aggregation.UNIQUE_COUNT:
        if aggregation.TOKEN.fullmatch(value) is None:
            return f"`{name}` must be an id or a hash: 1 to 128 of A-Z a-z 0-9 . _ : -, with a letter or digit first"
        return ""
    if aggregation.WEIGHT.fullmatch(value) is None:
        return f'`{name}` is a weight: a plain decimal such as "0.25", not negative, no exponent'
    try:
        aggregation.units(meter, quantity, dimensions)
    except ValueError:
        return f"`quantity` times `{name}` must have at most 18 digits before and 9 after the point"
    return ""


def _check_envelope(event: Envelope, more: str) -> None:
    if not _EARLIEST <= event.time < _LATEST:
        raise ContractError("time", "`time` must lie between 2000 and 2200")
    # PostgreSQL keeps it in no text: one such record would hold up every publication.
    if "\x00" in f"{event.id}{event.source}{event.subject}{event.tenant}{event.importid}{more}":
        raise ContractError("schema", "text fields must not contain the character U+0000")


def out_of_limits(event: Envelope, received: datetime) -> bool:
    """True where a live event's time is too far from when it was received (broker time, not ours)."""
    if event.importid:
        return False
    return event.time > received + MAX_AHEAD or event.time < received - MAX_AGE


def _without_content(message: str) -> str:
    """msgspec names path and expectation, but quotes a wrong constant and an unknown field's name."""
    if "unknown field" in message:
        return "Object contains an unknown field"
    return _QUOTED.sub("Expected the constant of the contract", message)
