"""Anybody's CSV as usage events. Pure: no network, no platform.

An event's identity is its source, the row's content, its ordinal among identical rows, and the
meter. So a file may be imported twice, or again after its first row was removed, and every row that
was there keeps its identity: a position in the file would have moved.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from core.contracts.usage import TYPE, ContractError, UsageEvent, convert
from core.ids import derived_id, length_prefixed
from deploy.imports.times import parse_time


class ImportFileError(Exception):
    """The file as a whole cannot be imported; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the columns mean."""

    source: str
    time_column: str
    meters: Mapping[str, str]
    """Meter name to the column that holds its quantity."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out. `line` counts from 1, the header included."""

    line: int
    reason: str


@dataclass(slots=True)
class Scan:
    """What a first pass found: how much there is, from when to when, and what is bad."""

    rows: int = 0
    events: int = 0
    first: datetime | None = None
    last: datetime | None = None
    bad: list[BadRow] = field(default_factory=list)
    sha256: str = ""


def rows(path: Path, mapped: Mapped) -> Iterator[tuple[int, list[str], dict[str, str] | BadRow]]:
    """Yield (line, cells, row by column or why it is bad) for each row with content.

    Raises:
        ImportFileError: the file is missing, not text in UTF-8, or lacks a named column.
    """
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ImportFileError(f"cannot open {path}: {error.strerror}") from error
    with file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise ImportFileError(f"{path} is empty; its first line must name the columns")
            missing = [name for name in (mapped.time_column, *mapped.meters.values()) if name not in header]
            if missing:
                raise ImportFileError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}"
                )
            line = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    if len(cells) == len(header):
                        yield line, cells, dict(zip(header, cells, strict=True))
                    else:
                        yield (
                            line,
                            cells,
                            BadRow(line, f"has {len(cells)} columns, the header has {len(header)}"),
                        )
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ImportFileError(f"{path} is not UTF-8 text; convert it first") from error
        except csv.Error as error:
            raise ImportFileError(f"{path}, line {reader.line_num}: {error}") from error


def events(path: Path, mapped: Mapped, *, tenant: str, importid: str = "") -> Iterator[UsageEvent | BadRow]:
    """Each row as one event per meter, in file order; a bad row as itself, once."""
    seen: Counter[bytes] = Counter()
    for line, cells, row in rows(path, mapped):
        if isinstance(row, BadRow):
            yield row
            continue
        content = hashlib.sha256(length_prefixed(cells)).digest()[:16]
        seen[content] += 1
        try:
            yield from _row_events(row, mapped, tenant, importid, f"{content.hex()}:{seen[content]}")
        except ValueError as error:
            yield BadRow(line, str(error))


def _row_events(
    row: Mapping[str, str], mapped: Mapped, tenant: str, importid: str, identity: str
) -> list[UsageEvent]:
    try:
        time = parse_time(row[mapped.time_column])
    except ValueError as error:
        raise ValueError(f"column {mapped.time_column}: {error}") from None
    result = []
    for meter, column in mapped.meters.items():
        try:
            event = convert(
                {
                    "specversion": "1.0",
                    "type": TYPE,
                    "id": derived_id(mapped.source, identity, meter),
                    "source": mapped.source,
                    "time": time,
                    "tenant": tenant,
                    "importid": importid,
                    "data": {"meter": meter, "quantity": row[column].strip()},
                }
            )
        except ContractError as error:
            raise ValueError(f"column {column}: {error.message}") from None
        result.append(event)
    return result


def scan(path: Path, mapped: Mapped) -> Scan:
    """One pass over the file before anything is sent."""
    result = Scan()
    for item in events(path, mapped, tenant="-"):
        if isinstance(item, BadRow):
            result.rows += 1
            result.bad.append(item)
            continue
        result.events += 1
        result.first = item.time if result.first is None else min(result.first, item.time)
        result.last = item.time if result.last is None else max(result.last, item.time)
    result.rows += result.events // max(1, len(mapped.meters))
    with path.open("rb") as file:
        result.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return result
