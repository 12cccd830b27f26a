"""What the topic holds beyond the published cells, added up: the live half of a quota answer.

A pure structure; `services.billing.live` feeds it. For each partition it knows three offsets:

    history ── reflected ── position ──▶
    only identities │ counted in sums │ not read yet

Cells that reflect the topic up to `reflected` plus `sums` are the usage up to `position`. When new
cells are published, `advance` takes what they now contain out of the sums. History keeps identities
of records that cells contain already, as far as memory allows, so that an event sent again shortly
after it landed is not counted in the minute before the repetition lands too. What is older than
history would be: an answer is exact at the latest when the next slice is published.

A void counts like its event with the sign turned, while that event is in the sums when the void is read.
An event that cells contain already is not in memory: its void shows with the next publication.
"""

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from core.aggregation import element, grouped, units
from core.contracts.usage import (
    Checkpoint,
    ContractError,
    UsageEvent,
    VoidEvent,
    microseconds,
    out_of_limits,
    parse_record,
)
from core.decimals import nano
from core.eventlog.api import Record
from core.meters import METERS, Aggregation

Dimensions = tuple[tuple[str, str], ...]
CellKey = tuple[str, int, Dimensions, str]
"""Meter, hour (seconds since 1970 UTC), dimensions sorted by name, and the element of what cannot be added
up (`core.aggregation`; empty for all others)."""

MAX_RECORDS: Final = 1_000_000
CHUNK: Final = 1024
_HOUR: Final = 3_600_000_000
_IDENTITY_BITS: Final = (1 << 60) - 1
"""Two digits of a Python integer: half a million million identities until two are likely to collide."""
_FITS: Final = 1 << 63
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, eq=False)
class Cell:
    """Sum of one tenant's records of one meter, hour, dimensions and element between reflected and position."""

    tenant: str
    key: CellKey
    nano: int = 0
    """Below zero where voids of what cells contain already are among the records."""
    events: int = 0
    records: int = 0
    """How many the sums are of; the cell goes with the last."""


@dataclass(slots=True, eq=False)
class _Chunk:
    """Neighbouring records of a partition, either all history or none of it.

    `cells` holds None for what is not counted; it is empty in history, as are the quantities.
    """

    partition: int
    start: int
    identities: "array[int]" = field(default_factory=lambda: array("Q"))
    cells: list[Cell | None] = field(default_factory=list)
    quantities: "array[int]" = field(default_factory=lambda: array("q"))
    large: dict[int, int] = field(default_factory=dict)
    """Quantities that 64 bits do not hold, by index."""
    voids: set[int] = field(default_factory=set)
    """Indexes of records that take an event out; their quantity is negative."""

    @property
    def end(self) -> int:
        return self.start + len(self.identities)

    def quantity(self, index: int) -> int:
        return self.large.get(index, self.quantities[index])

    def forget(self) -> None:
        """It is history now."""
        self.cells, self.quantities, self.large, self.voids = [], array("q"), {}, set()


@dataclass(slots=True, eq=False)
class _Partition:
    reflected: int
    position: int
    chunks: deque[_Chunk] = field(default_factory=deque)
    strays: deque[tuple[int, int]] = field(default_factory=deque)
    """(offset, identity) of repetitions whose first record stands in another partition."""
    gap_until: int = 0
    """Records below this offset were gone before they were read; until cells contain them the sums
    lack something."""


class Tail:
    """All partitions of `usage.records` from the published watermark on, within `max_records`."""

    def __init__(self, max_records: int = MAX_RECORDS, *, chunk_records: int = CHUNK) -> None:
        self._max, self._chunk = max_records, chunk_records
        self._partitions: dict[int, _Partition] = {}
        self._seen: dict[int, _Chunk] = {}
        self._cells: dict[str, dict[CellKey, Cell]] = {}
        self._held = 0

    def reset(self, reflected: Mapping[int, int], starts: Mapping[int, int]) -> None:
        """Forget everything; read partition p from `starts[p]`, with cells that reflect `reflected[p]`.

        A start below the watermark reads history; one above it (what lies between is gone from the
        topic) leaves the partition incomplete until cells reflect the start.
        """
        self._partitions = {
            partition: _Partition(offset, starts[partition], gap_until=starts[partition])
            for partition, offset in reflected.items()
        }
        self._seen, self._cells, self._held = {}, {}, 0

    @property
    def partitions(self) -> Sequence[int]:
        return sorted(self._partitions)

    @property
    def reflected(self) -> dict[int, int]:
        return {number: partition.reflected for number, partition in self._partitions.items()}

    @property
    def positions(self) -> dict[int, int]:
        return {number: partition.position for number, partition in self._partitions.items()}

    @property
    def complete(self) -> bool:
        """True where cells up to `reflected` plus sums lack nothing below `positions`."""
        return all(p.position >= p.reflected >= p.gap_until for p in self._partitions.values())

    @property
    def room(self) -> int:
        """Records that may still be added; history does not count, it gives way."""
        live = sum(max(0, p.position - p.reflected) for p in self._partitions.values())
        return max(0, self._max - live)

    @property
    def held(self) -> int:
        """Records in memory, history included."""
        return self._held

    def knows(self, identity: bytes) -> bool:
        """True where a record of this identity is in memory, history included."""
        return _short(identity) in self._seen

    def cells(self, tenant: str) -> Iterator[Cell]:
        """Sums of a tenant's counted records between reflected and position."""
        return iter(self._cells.get(tenant, {}).values())

    def add(self, partition_number: int, records: Sequence[Record]) -> None:
        """Take in the next records of a partition: the first one stands at its position.

        Raises:
            ValueError: for records that do not continue what was read; the caller should reset.
        """
        partition = self._partitions[partition_number]
        for record in records:
            if record.offset != partition.position:
                raise ValueError(f"record {record.offset} does not continue at {partition.position}")
            chunk = partition.chunks[-1] if partition.chunks else None
            if (
                chunk is None
                or len(chunk.identities) >= self._chunk
                or chunk.end != record.offset
                or record.offset == partition.reflected
            ):
                chunk = _Chunk(partition_number, record.offset)
                partition.chunks.append(chunk)
            self._append(partition, chunk, record)
            partition.position += 1
        self._held += len(records)
        self._forget_history()

    def advance(self, watermark: Mapping[int, int]) -> Iterator[None]:
        """Take out of the sums what cells now contain; forward only. Yields between short steps, for
        the caller to let others run: until the end, `reflected` is no state that was ever published.

        Where the watermark is beyond what was read, reading
        goes on from there.
        """
        partitions = self._partitions
        for number, target in watermark.items():
            partition = partitions.get(number)
            while partition is not None and partition.reflected < target:
                self._step(partition, target)
                yield
                if partitions is not self._partitions:
                    return  # reset meanwhile
        self._forget_history()

    def _append(self, partition: _Partition, chunk: _Chunk, record: Record) -> None:
        event = _counted(record)
        live = record.offset >= partition.reflected
        identity, cell, quantity, void = 0, None, 0, False
        if event is not None:
            identity = _short(event.identity)
            first = self._seen.get(identity)
            if first is None:
                self._seen[identity] = chunk
                if live and isinstance(event, UsageEvent):
                    cell, quantity = self._cell(event)
                elif live and isinstance(event, VoidEvent):
                    cell, quantity = self._voided(event)
                    void = cell is not None
                if cell is not None:
                    _change(cell, quantity, -1 if void else 1, 1)
            elif first.partition != chunk.partition:
                if live:
                    partition.strays.append((record.offset, identity))
                else:
                    self._landed_elsewhere(identity)
        chunk.identities.append(identity)
        if live:
            if void:
                chunk.voids.add(len(chunk.cells))
            fits = -_FITS <= quantity < _FITS
            if not fits:
                chunk.large[len(chunk.cells)] = quantity
            chunk.cells.append(cell)
            chunk.quantities.append(quantity if fits else 0)

    def _voided(self, event: VoidEvent) -> tuple[Cell | None, int]:
        """The cell of the event that is voided, and what to add to it; no cell where that event is not in
        the sums."""
        identity = _short(event.reference)
        chunk = self._seen.get(identity)
        if chunk is None:
            return None, 0
        index = chunk.identities.index(identity)
        cell = chunk.cells[index] if index < len(chunk.cells) else None
        return cell, 0 if cell is None else -chunk.quantity(index)

    def _cell(self, event: UsageEvent) -> tuple[Cell, int]:
        """The cell of an event, and the nano units that it adds."""
        data, hour = event.data, microseconds(event.time) // _HOUR * 3600
        meter = METERS[data.meter]
        if meter.aggregation is Aggregation.SUM:
            key, quantity = (
                (meter.name, hour, tuple(sorted(data.dimensions.items())), ""),
                nano(data.quantity),
            )
        else:
            stands = element(meter, data.quantity, data.dimensions, event.time, event.identity)
            groups = tuple(sorted(grouped(meter, data.dimensions).items()))
            key, quantity = (meter.name, hour, groups, stands), units(meter, data.quantity, data.dimensions)
        cells = self._cells.setdefault(event.tenant, {})
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Cell(event.tenant, key)
        return cell, quantity

    def _step(self, partition: _Partition, target: int) -> None:
        """Move `reflected` to the target or to the end of its chunk, whichever comes first."""
        while partition.strays and partition.strays[0][0] < min(target, partition.position):
            self._landed_elsewhere(partition.strays.popleft()[1])
        for chunk in partition.chunks:
            if chunk.end > partition.reflected:
                break
        else:
            # Everything read is reflected: what was not read lies in cells already.
            partition.reflected = target
            partition.position = max(partition.position, target)
            return
        end = min(target, chunk.end)
        for index in range(max(0, partition.reflected - chunk.start), max(0, end - chunk.start)):
            self._take_out(chunk, index)
        partition.reflected = end
        if end == chunk.end:
            chunk.forget()

    def _take_out(self, chunk: _Chunk, index: int) -> None:
        cell = chunk.cells[index]
        if cell is None:
            return
        chunk.cells[index] = None
        _change(cell, -chunk.quantity(index), 1 if index in chunk.voids else -1, -1)
        if cell.records == 0:
            cells = self._cells[cell.tenant]
            del cells[cell.key]
            if not cells:
                del self._cells[cell.tenant]

    def _landed_elsewhere(self, identity: int) -> None:
        """A repetition landed: if its first record did not, that one lands as the duplicate."""
        first = self._seen.get(identity)
        if first is None:
            return
        index = first.identities.index(identity)
        if index < len(first.cells):
            self._take_out(first, index)

    def _forget_history(self) -> None:
        while self._held > self._max:
            old = [p for p in self._partitions.values() if p.chunks and p.chunks[0].end <= p.reflected]
            if not old:
                return
            chunk = max(old, key=lambda p: p.reflected - p.chunks[0].start).chunks.popleft()
            self._held -= len(chunk.identities)
            for identity in chunk.identities:
                if self._seen.get(identity) is chunk:
                    del self._seen[identity]


def _change(cell: Cell, quantity: int, events: int, records: int) -> None:
    cell.nano += quantity
    cell.events += events
    cell.records += records


def _short(identity: bytes) -> int:
    return int.from_bytes(identity[:8]) & _IDENTITY_BITS or 1


def _counted(record: Record) -> UsageEvent | VoidEvent | None:
    """The record, where the slice will count it unless it is a repetition, voids what never was, or names an import
    that was not declared so."""
    try:
        event = parse_record(record.value)
    except ContractError:
        return None
    received = _EPOCH + timedelta(milliseconds=record.timestamp_ms)
    return None if isinstance(event, Checkpoint) or out_of_limits(event, received) else event
