"""What every aggregation makes of events, recounted in plain Python: it shares no code with the platform.

Events and voids are landed by the rules of the contract, one after the other, and each question is answered by
going through all events that stand.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final

TENANT, SOURCE = "org_a", "s"
NOON: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
"""When everything is received: the day before lies in another month."""
AGGREGATIONS: Final = {
    "t.sum": ("sum", ""),
    "t.count": ("count", ""),
    "t.weighted": ("weighted_sum", "seconds"),
    "t.max": ("max", ""),
    "t.min": ("min", ""),
    "t.latest": ("latest", ""),
    "t.unique": ("unique_count", "user"),
}
"""Meter to its aggregation and the dimension that it reads."""
ADDED: Final = ("sum", "count", "weighted_sum")


@dataclass(frozen=True)
class Event:
    name: str
    meter: str
    minutes: int
    quantity: str
    dimensions: tuple[tuple[str, str], ...] = ()

    @property
    def time(self) -> datetime:
        return NOON + timedelta(minutes=self.minutes)

    def encode(self) -> bytes:
        return _json("headrace.usage.v1", self.name, SOURCE, self.time, {
            "meter": self.meter, "quantity": self.quantity, "dimensions": dict(self.dimensions),
        })  # fmt: skip


@dataclass(frozen=True)
class Void:
    name: str

    def encode(self) -> bytes:
        named = {"source": SOURCE, "id": self.name}
        return _json("headrace.usage.void.v1", f"void {self.name}", "corrections", NOON, named)


Message = Event | Void


def _json(kind: str, name: str, source: str, time: datetime, data: object) -> bytes:
    return json.dumps({
        "specversion": "1.0", "type": kind, "id": name, "source": source, "tenant": TENANT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "data": data,
    }).encode()  # fmt: skip


class Ledger:
    """Which events stand. The first of a name is counted for ever; a void takes it out once."""

    def __init__(self) -> None:
        self.counted: dict[str, Event] = {}
        self.voided: set[str] = set()
        self.asked: set[str] = set()
        """Names of all voids that were read, in vain or not."""

    def land(self, slice_: Iterable[Message]) -> None:
        """A slice, in the order of partition and offset: voids come last."""
        messages = list(slice_)
        for message in messages:
            if isinstance(message, Event):
                self.counted.setdefault(message.name, message)
        self.asked |= {one.name for one in messages if isinstance(one, Void)}
        self.voided |= {one.name for one in messages if isinstance(one, Void) and one.name in self.counted}

    def read_behind(self, messages: Iterable[Message]) -> None:
        """What a live quota reads behind the cells, in its order: the first void of an event finds what was read
        before it there; all else about voids shows with the next publication."""
        here = set[str]()
        for message in messages:
            if isinstance(message, Void):
                self.voided |= {message.name} & here - self.asked
                self.asked.add(message.name)
            elif message.name not in self.counted:
                here.add(message.name)
                self.counted[message.name] = message

    def copy(self) -> "Ledger":
        other = Ledger()
        other.counted, other.voided, other.asked = dict(self.counted), set(self.voided), set(self.asked)
        return other

    @property
    def standing(self) -> list[Event]:
        return [event for name, event in self.counted.items() if name not in self.voided]


def value(meter: str, events: Sequence[Event]) -> Fraction:
    """Of events of one meter; none give 0."""
    aggregation, measured = AGGREGATIONS[meter]
    quantities = [Fraction(event.quantity) for event in events]
    if not events:
        return Fraction(0)
    match aggregation:
        case "sum":
            return sum(quantities, Fraction(0))
        case "count":
            return Fraction(len(events))
        case "weighted_sum":
            weights = [Fraction(dict(event.dimensions)[measured]) for event in events]
            return sum((q * w for q, w in zip(quantities, weights, strict=True)), Fraction(0))
        case "max":
            return max(quantities)
        case "min":
            return min(quantities)
        case "unique_count":
            return Fraction(len({dict(event.dimensions)[measured] for event in events}))
        case _:
            return Fraction(max(events, key=lambda event: (event.time, digest(event.name))).quantity)


def digest(name: str) -> bytes:
    """Who is later of two at one time: the first 16 bytes of SHA-256 over the length-prefixed parts of the identity."""
    text = "".join(f"{len(part)}:{part}" for part in (TENANT, SOURCE, name))
    return hashlib.sha256(text.encode()).digest()[:16]


def groups(event: Event) -> str:
    """Dimensions of its cell, as sorted JSON without spaces."""
    measured = AGGREGATIONS[event.meter][1]
    kept = {name: text for name, text in event.dimensions if name != measured}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def start_of(event: Event, grain: str) -> datetime:
    hour = event.time.replace(minute=0, second=0, microsecond=0)
    if grain == "hour":
        return hour
    return hour.replace(hour=0) if grain == "day" else hour.replace(hour=0, day=1)


Key = tuple[object, ...]


def gathered(events: Iterable[Event], key: Callable[[Event], Key]) -> dict[Key, tuple[Fraction, int]]:
    """Value and events of each group, which must be of one meter."""
    found: dict[Key, list[Event]] = {}
    for event in events:
        found.setdefault(key(event), []).append(event)
    return {name: (value(every[0].meter, every), len(every)) for name, every in found.items()}


def cells(events: Iterable[Event], grain: str) -> dict[Key, tuple[Fraction, int]]:
    """By meter, start and dimensions."""
    return gathered(events, lambda event: (event.meter, start_of(event, grain), groups(event)))
