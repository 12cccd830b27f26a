"""Anybody's CSV or JSON lines as usage events. Pure: no network, no platform.

An event's identity is its source, the row's content, its ordinal among identical rows, and the
meter. So a file may be imported twice, or again after its first row was removed, and every row that
was there keeps its identity: a position in the file would have moved. The origin of times that are
numbers is no part of it, nor is rounding: the same row read in another way is the same event that
says something else, and is quarantined instead of counted twice.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from core.contracts.usage import TYPE, ContractError, UsageEvent, convert
from core.ids import derived_id, length_prefixed
from deploy.imports.mapping import BadRow, Mapped
from deploy.imports.quantities import quantity
from deploy.imports.rows import rows
from deploy.imports.times import parse_time


@dataclass(slots=True)
class Scan:
    """What a first pass found: how much there is, from when to when, and what is bad."""

    rows: int = 0
    events: int = 0
    first: datetime | None = None
    last: datetime | None = None
    rounded: int = 0
    """Events whose quantity was rounded."""
    bad: list[BadRow] = field(default_factory=list)
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """The events of one row, one a meter."""

    events: list[UsageEvent]
    rounded: int
    """How many of them have a quantity that was rounded."""


def taken(path: Path, mapped: Mapped, *, tenant: str, importid: str = "") -> Iterator[Taken | BadRow]:
    """Each row in file order, or why it is left out.

    Raises:
        ImportFileError: as `rows`.
    """
    seen: Counter[bytes] = Counter()
    for line, cells, row in rows(path, mapped):
        if isinstance(row, BadRow):
            yield row
            continue
        content = hashlib.sha256(length_prefixed(cells)).digest()[:16]
        seen[content] += 1
        try:
            yield _row_events(row, mapped, tenant, importid, f"{content.hex()}:{seen[content]}")
        except ValueError as error:
            yield BadRow(line, str(error))


def events(path: Path, mapped: Mapped, *, tenant: str, importid: str = "") -> Iterator[UsageEvent | BadRow]:
    """Each row as one event per meter, in file order; a bad row as itself, once."""
    for item in taken(path, mapped, tenant=tenant, importid=importid):
        if isinstance(item, BadRow):
            yield item
        else:
            yield from item.events


def _row_events(row: Mapping[str, str], mapped: Mapped, tenant: str, importid: str, identity: str) -> Taken:
    read_time = mapped.relative.parse if mapped.relative else parse_time
    try:
        time = read_time(row[mapped.time_column])
    except ValueError as error:
        raise ValueError(f"column {mapped.time_column}: {error}") from None
    result, rounded = list[UsageEvent](), 0
    for meter, column in mapped.meters.items():
        try:
            amount, was_rounded = quantity(row[column], rounds=mapped.round_quantities)
            event = convert(
                {
                    "specversion": "1.0",
                    "type": TYPE,
                    "id": derived_id(mapped.source, identity, meter),
                    "source": mapped.source,
                    "time": time,
                    "tenant": tenant,
                    "importid": importid,
                    "data": {"meter": meter, "quantity": amount},
                }
            )
        except ContractError as error:
            raise ValueError(f"column {column}: {error.message}") from None
        except ValueError as error:
            raise ValueError(f"column {column}: {error}") from None
        result.append(event)
        rounded += was_rounded
    return Taken(result, rounded)


def scan(path: Path, mapped: Mapped) -> Scan:
    """One pass over the file before anything is sent."""
    result = Scan()
    for item in taken(path, mapped, tenant="-"):
        result.rows += 1
        if isinstance(item, BadRow):
            result.bad.append(item)
            continue
        result.events += len(item.events)
        result.rounded += item.rounded
        for event in item.events:
            result.first = event.time if result.first is None else min(result.first, event.time)
            result.last = event.time if result.last is None else max(result.last, event.time)
    with path.open("rb") as file:
        result.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return result
