"""A generated stream of usage records, and a plain reading of it: the oracle of the drill of conservation.

Not one line of the platform is imported here. The contract, the limits and the fates are written down again, so
that a mistake of the platform cannot hide in a check that shares it. Quantities are whole nano units.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

DOUBLE, CONFLICT, MALFORMED, BEYOND, LATE = 0.05, 0.001, 0.005, 0.0005, 0.03
"""Parts of a stream: sent again, the same id with other content, unreadable, out of limits, days late."""
EVENT, AGAIN, OTHER, BROKEN, OUT = range(5)
"""What a record is, as the stream was made."""
TENANTS, SUBJECTS = 12, 150
METERS: Final = {
    "llm.tokens.input": ("model", "provider"),
    "llm.tokens.output": ("model", "provider"),
    "tool.calls": ("tool", "outcome"),
    "api.requests": ("route", "code_class"),
}
NANO: Final = 1_000_000_000

Value = dict[str, Any]


def stream(seed: int, count: int, now: datetime) -> Iterator[tuple[bytes, bytes]]:
    """`count` records as (key, value), shuffled. What repeats or contradicts an event may come before it."""
    dice = random.Random(seed)  # noqa: S311 - repeatable
    numbers = {kind: int(count * part) for kind, part in ((AGAIN, DOUBLE), (OTHER, CONFLICT), (BROKEN, MALFORMED), (OUT, BEYOND))}  # fmt: skip
    events = count - sum(numbers.values())
    order = [number * 5 + EVENT for number in range(events)]
    order += [dice.randrange(events) * 5 + kind for kind in (AGAIN, OTHER) for _ in range(numbers[kind])]
    order += [number * 5 + kind for kind in (BROKEN, OUT) for number in range(numbers[kind])]
    dice.shuffle(order)
    for position, code in enumerate(order):
        number, kind = divmod(code, 5)
        yield _record(seed, number, kind, now, position)


def _record(seed: int, number: int, kind: int, now: datetime, position: int) -> tuple[bytes, bytes]:
    # An event and what repeats it come from the same number, and so under the same key.
    name = number if kind in (EVENT, AGAIN, OTHER) else -number - 1
    digest = hashlib.blake2b(f"{seed}:{name}:{kind if name < 0 else 0}".encode(), digest_size=32).digest()
    pick = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 32, 4)]
    tenant, subject = f"org_{pick[0] % TENANTS}", f"cus_{pick[1] % SUBJECTS}"
    meter = tuple(METERS)[pick[2] % len(METERS)]
    ago = timedelta(milliseconds=pick[3] % (72 * 3_600_000))
    if pick[4] % 1000 < 1000 * LATE:
        ago += timedelta(days=3 + pick[5] % 345)
    quantity = f"{pick[6] % 100_000}.{pick[7] % NANO:09d}" if pick[6] % 3 else str(1 + pick[6] % 100_000)
    event: Value = {
        "specversion": "1.0", "type": "headrace.usage.v1", "id": f"{kind if name < 0 else ''}n{number}", "source": f"s{pick[5] % 3}",
        "time": _text(now - ago, pick[7]), "tenant": tenant, "subject": subject,
        "data": {"meter": meter, "quantity": quantity,
                 "dimensions": dict.fromkeys(METERS[meter][:pick[6] % 3], f"v{pick[7] % 4}")},
    }  # fmt: skip
    value = _changed(event, kind, position, now)
    return f"{tenant}|{subject}".encode(), value


def _changed(event: Value, kind: int, position: int, now: datetime) -> bytes:
    """The event as this record of it says it."""
    data = event["data"]
    if kind == AGAIN and position % 2:  # the same, written differently
        whole, _, part = data["quantity"].partition(".")
        data["quantity"] = f"{whole}.{part.ljust(9, '0')}"
        data["dimensions"] = dict(reversed(data["dimensions"].items()))
        event = dict(reversed(event.items()))
        event["time"] = _text(_instant(event["time"]), position // 2)
    elif kind == OTHER:
        if position % 2:
            data["quantity"] = f"{int(data['quantity'].split('.')[0]) + 1}.5"
        else:
            event["time"] = _text(_instant(event["time"]) - timedelta(seconds=1), position // 2)
    elif kind == OUT:
        event["time"] = _text(now + (timedelta(hours=2) if position % 2 else -timedelta(days=500)), position)
    elif kind == BROKEN:
        return _BROKEN[position % len(_BROKEN)](event)
    return json.dumps(event).encode()


def _without(name: str) -> Callable[[Value], bytes]:
    return lambda event: json.dumps({key: value for key, value in event.items() if key != name}).encode()


def _with(name: str, said: object) -> Callable[[Value], bytes]:
    return lambda event: json.dumps({**event, name: said}).encode()


def _data(name: str, said: object) -> Callable[[Value], bytes]:
    return lambda event: json.dumps({**event, "data": {**event["data"], name: said}}).encode()


_BROKEN: Final[tuple[Callable[[Value], bytes], ...]] = (
    lambda event: json.dumps(event).encode()[:-7], lambda _: b"", lambda _: b"\xff\xfe\x00", lambda _: b"null",
    lambda event: json.dumps([event]).encode(), _without("id"), _without("time"), _without("data"), _with("id", ""),
    _with("time", "2026-03-01T00:00:00"), _with("time", "yesterday"), _with("tenant", 7), _with("specversion", "0.3"),
    _with("type", "headrace.usage.v9"), _with("note", "free text"), _data("quantity", 5), _data("quantity", "1e5"),
    _data("quantity", "-1"), _data("quantity", "1.0000000001"), _data("quantity", ""), _data("meter", "no.such.meter"),
    _data("dimensions", {"colour": "red"}), _data("dimensions", {"model": 4}),
)  # fmt: skip


def _text(time: datetime, form: int) -> str:
    """One instant, in one of three forms; a sender's own zone among them."""
    if form % 3 == 2:
        return time.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
    text = time.isoformat(timespec="microseconds" if time.microsecond else "auto")
    return text.replace("+00:00", "Z") if form % 3 else text


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


Cell = tuple[str, str, str, datetime]
"""Tenant, meter, dimensions as sorted JSON, start."""


@dataclass
class Truth:
    """What must come out of a stream, from a plain reading of the log."""

    fates: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """(tenant, partition, fate) to records."""
    hours: dict[Cell, list[int]] = field(default_factory=dict)
    """Nano units and events."""
    listed: dict[tuple[int, int], str] = field(default_factory=dict)
    """(partition, offset) of each record that is neither counted nor a duplicate, to its fate."""
    late: int = 0

    def read(self, partition: int, records: Iterable[tuple[int, bytes, bytes, int]]) -> int:
        """Judge (offset, key, value, broker time in ms) of a whole partition in order; returns how many.

        All records of an event have one key, and so one partition: which one came first is known here.
        """
        first: dict[bytes, tuple[Any, ...]] = {}
        count = 0
        for offset, key, value, received_ms in records:
            count += 1
            tenant, fate = key.decode().split("|")[0], "rejected"
            event = readable(value)
            if event is not None:
                tenant, fate = event["tenant"], self._fate(event, received_ms, first)
            self.fates[tenant, partition, fate] += 1
            if fate in ("rejected", "quarantined"):
                self.listed[partition, offset] = fate
        return count

    def _fate(self, event: Value, received_ms: int, first: dict[bytes, tuple[Any, ...]]) -> str:
        name = hashlib.sha256(json.dumps([event["tenant"], event["source"], event["id"]]).encode()).digest()
        time, data = _instant(event["time"]), event["data"]
        dimensions = sorted_json(data.get("dimensions", {}))
        said = (time, nano(data["quantity"]), data["meter"], dimensions, event.get("subject", ""))
        if name in first:
            return "duplicates" if first[name] == said else "quarantined"
        received = datetime.fromtimestamp(received_ms / 1000, tz=UTC)
        if not received - timedelta(days=400) <= time <= received + timedelta(minutes=5):
            return "quarantined"
        first[name] = said
        cell = self.hours.setdefault(
            (event["tenant"], data["meter"], dimensions, time.replace(minute=0, second=0, microsecond=0)),
            [0, 0],
        )
        cell[0] += said[1]
        cell[1] += 1
        self.late += received - time > timedelta(days=3)
        return "counted"

    def days(self) -> dict[Cell, list[int]]:
        found: dict[Cell, list[int]] = {}
        for (tenant, meter, dimensions, hour), (units, events) in self.hours.items():
            cell = found.setdefault((tenant, meter, dimensions, hour.replace(hour=0)), [0, 0])
            cell[0] += units
            cell[1] += events
        return found


_FIELDS: Final = {"specversion", "type", "id", "source", "time", "tenant", "subject", "data"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_QUANTITY = re.compile(r"(0|[1-9]\d{0,17})(\.\d{1,9})?", re.ASCII)


def readable(value: bytes) -> Value | None:
    """The event, or None where it breaks the contract."""
    try:
        event = json.loads(value.decode())
    except ValueError:
        return None
    if (
        not isinstance(event, dict)
        or not event.keys() <= _FIELDS
        or not event.keys() >= _FIELDS - {"subject"}
    ):
        return None
    if any(not isinstance(event[name], str) or not event[name] for name in event.keys() - {"data"}):
        return None
    data = event["data"]
    right = (
        event["specversion"] == "1.0"
        and event["type"] == "headrace.usage.v1"
        and _TIME.fullmatch(event["time"]) is not None
        and isinstance(data, dict)
        and data.keys() <= {"meter", "quantity", "dimensions"}
        and isinstance(data.get("quantity"), str)
        and _QUANTITY.fullmatch(data["quantity"]) is not None
        and data.get("meter") in METERS
    )
    return event if right and _known(data["meter"], data.get("dimensions", {})) else None


def _known(meter: str, dimensions: object) -> bool:
    return isinstance(dimensions, dict) and all(
        name in METERS[meter] and isinstance(value, str) for name, value in dimensions.items()
    )


def sorted_json(dimensions: object) -> str:
    return json.dumps(dimensions, sort_keys=True)


def nano(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole) * NANO + int(part.ljust(9, "0"))
