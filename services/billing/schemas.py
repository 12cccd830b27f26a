"""Bodies that billing reads, and the shape of what it shows."""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from core.clock import rfc3339
from core.contracts.usage import Checkpoint, Reference, UsageEvent, VoidEvent
from core.meters import METERS, Meter
from services.billing.documents import Meters, MeterShown, UsageImport, UsageReplacement
from services.billing.store import Import
from services.billing.verdicts import MAX_EVENTS
from services.common.body import documented
from services.common.errors import Problem, invalid

MAX_BYTES: Final = 4 << 20
"""Of a batch of usage. 1000 events are usually 0.4 MB."""


class Events(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch as an object; the array alone does as well."""

    events: Annotated[list[UsageEvent], Meta(max_length=MAX_EVENTS)]


class Replacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes one event out of all sums and puts another in its place."""

    replaces: Reference
    event: Any
    subject: Annotated[str, Meta(max_length=256, description="`subject` of the event that is replaced.")] = ""


class NewImport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Declares that events of a source may be as old as the period says."""

    source: Annotated[str, Meta(min_length=1, max_length=256, description="`source` of the events.")]
    period_start: Annotated[datetime, Meta(tz=True, description="Time of the first event.")]
    period_end: Annotated[datetime, Meta(tz=True, description="Time of the last event.")]


def batch_of(value: object) -> list[object]:
    """The events of a body: an array, or an object whose only field `events` is one.

    Raises:
        Problem: 422 for any other body, 413 `too_many_events`.
    """
    if isinstance(value, dict):
        if set(value) != {"events"}:
            raise invalid("", "send an array of events, or an object with `events` and nothing else")
        value = value["events"]
    if not isinstance(value, list):
        raise invalid("", "send an array of events, or an object with `events` and nothing else")
    if len(value) > MAX_EVENTS:
        raise Problem(
            413,
            "too_many_events",
            "Too many events",
            f"The batch has {len(value)} events; send at most {MAX_EVENTS} at a time. Nothing was taken in.",
        )
    return value


def check_import(body: NewImport) -> NewImport:
    """Raises: Problem 422."""
    if "\x00" in body.source:
        raise invalid("/source", "must not contain the character U+0000")
    if not 2000 <= body.period_start.year <= body.period_end.year < 2200:
        raise invalid("/period_start", "the period must lie between 2000 and 2200")
    if body.period_start > body.period_end:
        raise invalid("/period_end", "`period_end` must not lie before `period_start`")
    return body


def replacement_document(replaced: Reference, void: str, event: str) -> UsageReplacement:
    return {
        "object": "usage_replacement",
        "replaces": {"source": replaced.source, "id": replaced.id},
        "void": void,
        "event": event,
    }


def import_document(declared: Import) -> UsageImport:
    return {
        "id": declared.id,
        "object": "usage_import",
        "source": declared.source,
        "period_start": rfc3339(declared.period_start),
        "period_end": rfc3339(declared.period_end),
    }


def meters_document() -> Meters:
    return {"object": "list", "data": [_meter(METERS[name]) for name in sorted(METERS)], "has_more": False}


def _meter(meter: Meter) -> MeterShown:
    return {
        "name": meter.name,
        "object": "meter",
        "unit": meter.unit,
        "what": meter.what,
        "source": meter.source or None,
        "dimensions": sorted(meter.dimensions),
        "measured": meter.measured or None,
        "aggregation": meter.aggregation.value,
        "is_summable": meter.aggregation.is_summable,
    }


def documented_batch() -> dict[str, Any]:
    """`openapi_extra` of a batch: either form."""
    extra = documented(Events, description=f"At most {MAX_EVENTS} events; `tenant` may be left out.")
    media = extra["requestBody"]["content"]["application/json"]
    kinds, components = msgspec.json.schema_components(
        [UsageEvent, VoidEvent, Checkpoint], ref_template="#/components/schemas/{name}"
    )
    array = {"type": "array", "maxItems": MAX_EVENTS, "items": {"oneOf": list(kinds)}}
    media["schema"] = {"oneOf": [array, media["schema"]]}
    extra["x-components"] |= components
    extra["x-components"]["Events"]["properties"]["events"] = array
    for kind in ("UsageEvent", "VoidEvent", "Checkpoint"):
        extra["x-components"][kind]["required"].remove("tenant")
    return extra


def documented_replacement() -> dict[str, Any]:
    """`openapi_extra` of a replacement."""
    extra = documented(Replacement)
    extra["x-components"]["Replacement"]["properties"]["event"] = {"$ref": "#/components/schemas/UsageEvent"}
    return extra
