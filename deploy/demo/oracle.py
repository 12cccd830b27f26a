"""What the demo expects, computed without one line of the platform.

Two sources, kept apart on purpose: the trace file says what must be counted and what it costs; a
plain reading of the topic says what reached it, twice or bad. Nothing here imports `core.contracts`,
`core.rating` or the lake.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

INPUT_PRICE = Fraction("2.50") / 1_000_000
OUTPUT_PRICE = Fraction("10.00") / 1_000_000
METERS = {"llm.tokens.input", "llm.tokens.output", "api.requests"}


@dataclass(slots=True)
class Fates:
    """How many records of one tenant met which fate."""

    landed: int = 0
    counted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    rejected: int = 0

    def as_dict(self) -> dict[str, int]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(slots=True)
class Known:
    """What a reader of the topic keeps of one tenant, so that it can go on where records are gone meanwhile."""

    fates: Fates = field(default_factory=Fates)
    first: dict[tuple[str, str], str] = field(default_factory=dict)
    """(source, id) of each counted event, and the SHA-256 of what it said."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Totals of a trace file by a reader of its own."""

    requests: int
    input_tokens: int
    output_tokens: int

    @property
    def events(self) -> int:
        return 2 * self.requests

    @property
    def unrounded(self) -> str:
        return decimal_text(self.input_tokens * INPUT_PRICE + self.output_tokens * OUTPUT_PRICE)


def read_trace(path: Path) -> Trace:
    """Add up a trace (TIMESTAMP, ContextTokens, GeneratedTokens)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        pairs = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    return Trace(len(pairs), sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))


def decimal_text(value: Fraction) -> str:
    """A fraction with a finite decimal form as canonical text.

    Raises:
        ValueError: where the form is not finite within 12 digits.
    """
    scaled = value * 10**12
    if scaled.denominator != 1:
        raise ValueError(f"{value} has no decimal form within 12 digits")
    whole, part = divmod(scaled.numerator, 10**12)
    return f"{whole}.{part:012d}".rstrip("0").rstrip(".")


def replay(records: Iterable[tuple[bytes, bytes, int]], tenant: str, before: Known | None = None) -> Known:
    """Decide the fate of each (key, value, broker time in ms) of one tenant, in log order of each partition.

    All records of a tenant without subject share a key and so a partition: log order is arrival order.

    Args:
        before: of the records before these; goes on with it.
    """
    known = before or Known()
    fates, first = known.fates, known.first
    for key, value, received_ms in records:
        event = _readable(value)
        owner = event["tenant"] if event else key.split(b"|")[0].decode(errors="replace")
        if owner != tenant:
            continue
        fates.landed += 1
        if event is None:
            fates.rejected += 1
            continue
        name = (str(event["source"]), str(event["id"]))
        said = json.dumps(
            [_instant(event["time"]).isoformat(), event["data"], event.get("subject", "")], sort_keys=True
        )
        content = hashlib.sha256(said.encode()).hexdigest()
        if name in first:
            if first[name] == content:
                fates.duplicates += 1
            else:
                fates.quarantined += 1
        elif not event.get("importid") and not _recent(_instant(event["time"]), received_ms):
            fates.quarantined += 1
        else:
            first[name] = content
            fates.counted += 1
    return known


def _readable(value: bytes) -> dict[str, object] | None:
    """The event, or None where it breaks the contract in a way the demo makes."""
    try:
        event = json.loads(value.decode())
        data = event["data"]
        good = (
            isinstance(event, dict)
            and event["specversion"] == "1.0"
            and event["type"] == "headrace.usage.v1"
            and all(
                isinstance(event[name], str) and event[name] for name in ("id", "source", "tenant", "time")
            )
            and data["meter"] in METERS
            and isinstance(data["quantity"], str)
            and re.fullmatch(r"\d{1,18}(\.\d{1,9})?", data["quantity"]) is not None
            and set(event)
            <= {"specversion", "type", "id", "source", "time", "tenant", "subject", "importid", "data"}
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return event if good else None


def _instant(text: object) -> datetime:
    return datetime.fromisoformat(str(text)).astimezone(UTC)


def _recent(time: datetime, received_ms: int) -> bool:
    received = datetime.fromtimestamp(received_ms / 1000, tz=UTC)
    return received - timedelta(days=400) <= time <= received + timedelta(minutes=5)


def differences(expected: Fates, seen: dict[str, int]) -> Iterator[str]:
    """Lines such as `counted: expected 17638, found 17637`; none where all agree."""
    for name, number in expected.as_dict().items():
        if seen.get(name) != number:
            yield f"{name}: expected {number}, found {seen.get(name)}"
