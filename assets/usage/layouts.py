"""Many records read at once, by their layout.

Producers write events with a serialiser, so the records of a slice are few texts with other values in the
same places. A layout is such a text without its values, taken from a record that `core.contracts.usage.parse`
accepts. A record that is byte for byte this text, with other strings, another object or another number in
the places of such, is JSON of the same shape and says the same of those values. So nothing of JSON is
parsed here: one comparison finds the quotes of all records (the first step of simdjson; Langdale and Lemire
2019), and no value becomes an object. Records that no layout fits are for `parse` itself.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from core.contracts.usage import TYPE, ContractError, UsageData, UsageEvent, parse

STRINGS: Final = (
    "tenant", "source", "id", "time", "subject", "importid", "producer", "incarnation", "meter", "quantity",
)  # fmt: skip
OBJECT: Final = "dimensions"
NUMBER: Final = "sequence"
"""Fields that differ between records of one layout, by the kind of their value."""
CONSTANTS: Final = frozenset({"specversion", "type", "datacontenttype"})
"""Fields that are part of a layout, value and all. A record that has any other field has no layout."""

LAYOUTS: Final = 64
"""Tried for one block; each costs a look at the records that have as many quotes."""
BLOCK: Final = 5_000
"""Records looked at together: their bytes stay in the processor's cache."""
LONGEST: Final = 16_384
"""Bytes of a record; usual ones are far below."""
LONGEST_TIME: Final = len("2000-01-01T00:00:00.000000+00:00")
LONGEST_OBJECT: Final = 1_024
LONGEST_NUMBER: Final = 16

_STRING: Final = rb'"[^"]*"'
_FIELD: Final = re.compile(
    rb'"data"\s*:\s*\{|"(?P<name>[a-z]+)"\s*:\s*'
    rb'(?:"(?P<string>[^"]*)"|(?P<object>\{(?:\s*%b\s*:\s*%b\s*,?)*\s*\})|(?P<number>[1-9][0-9]{0,15}))'
    % (_STRING, _STRING)
)
_NAMES: Final = {"string": STRINGS, "object": (OBJECT,), "number": (NUMBER,)}
_QUOTE, _BACKSLASH, _SPACE, _BEYOND_ASCII = ord('"'), ord("\\"), ord(" "), 128
_INLINE: Final = 12
"""Texts of so many bytes stand in their view themselves."""
_KEPT = np.tri(_INLINE + 1, _INLINE, -1, np.uint8).view("<u4") * np.uint32(255)
"""For each length the bytes of an inline text, as three words."""

Array = npt.NDArray[Any]


def _limits() -> dict[str, tuple[int, int]]:
    """Least and most bytes of each value: as many as the contract allows characters, so never too many."""
    limits = {"time": (1, LONGEST_TIME), OBJECT: (len("{}"), LONGEST_OBJECT), NUMBER: (1, LONGEST_NUMBER)}
    for shape in (UsageEvent, UsageData):
        info = msgspec.inspect.type_info(shape)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            if field.name in STRINGS and isinstance(field.type, msgspec.inspect.StrType):
                assert field.type.max_length is not None
                limits[field.name] = (field.type.min_length or 0, field.type.max_length)
    return limits


LIMITS: Final = _limits()


class Column:
    """Texts in Arrow's view layout, filled block by block."""

    def __init__(self, size: int) -> None:
        self._views = np.zeros((size, 4), "<u4")
        self._buffers: list[Any] = []

    def put(self, rows: slice, data: bytes, start: Array, length: Array) -> None:
        """The texts of these rows: `length` bytes from `start` in `data`, which goes on far behind them."""
        views, most = self._views[rows], int(length.max())
        views[:, 0] = length
        if most == 0:
            return
        found = windows(data, max(most, _INLINE))[start]
        words = found.view("<u4" if found.itemsize % 4 == 0 else np.uint8)
        if words.dtype == np.uint8:
            words = np.ascontiguousarray(words.reshape(len(found), -1)[:, :_INLINE]).view("<u4")
        words = words.reshape(len(found), -1)[:, :3]
        if most <= _INLINE:
            views[:, 1:] = words & _KEPT[length]
            return
        views[:, 1:] = words & _KEPT[np.minimum(length, _INLINE)]
        long = np.flatnonzero(length > _INLINE)
        views[long, 2] = len(self._buffers)
        views[long, 3] = long * most
        self._buffers.append(pa.py_buffer(found))

    def series(self, name: str) -> pl.Series:
        buffers = [None, pa.py_buffer(self._views), *self._buffers]
        array = pa.Array.from_buffers(pa.string_view(), len(self._views), buffers)
        return pl.Series(name, pl.from_arrow(array))


@dataclass(frozen=True, slots=True)
class Values:
    """The values of many records. A record that no layout fits has empty ones."""

    fits: Array
    texts: Mapping[str, pl.Series]
    """All but time; what is absent is empty. Those of `OBJECT` and `NUMBER` are as they were written: whether
    they are an object and a number, nobody has looked."""
    times: Array
    """Bytes, a row of `LONGEST_TIME` for each record; what is behind the end of its time means nothing."""
    time_length: Array


@dataclass(frozen=True, slots=True)
class Place:
    """A value: `after` bytes behind one quote of the record, to `before` bytes in front of another.

    Quotes are numbered within the record; the number of its quotes stands for its end.
    """

    name: str
    piece: bytes
    """What stands between the value before and this one."""
    first: int
    after: int
    last: int
    before: int


@dataclass(frozen=True, slots=True)
class Layout:
    places: tuple[Place, ...]
    tail: bytes


def learn(record: bytes) -> Layout | None:
    """The layout of a record, None where it has none: `parse` refuses it, or it is unusual in kind or writing."""
    try:
        parse(record)
    except ContractError:
        return None
    whole = msgspec.json.decode(record)
    if whole["type"] != TYPE:
        return None
    said = {**whole, **whole["data"]}
    places, names, end = list[Place](), set[str](), 0
    for field in _FIELD.finditer(record):
        name = (field["name"] or b"data").decode()
        if name in names:
            return None
        names.add(name)
        if name == "data" or name in CONSTANTS:
            continue
        kind = next(kind for kind in _NAMES if field[kind] is not None)
        if name not in _NAMES[kind]:
            return None
        piece, (start, stop) = record[end : field.start(kind)], field.span(kind)
        if kind == "string" and said[name].encode() != field[kind]:
            return None
        left, right = record.rindex(b'"', 0, start), record.find(b'"', stop)
        right = len(record) if right < 0 else right
        first, last = record.count(b'"', 0, left), record.count(b'"', 0, right)
        places.append(Place(name, piece, first, start - left, last, right - stop))
        end = stop
    return Layout(tuple(places), record[end:]) if names == {*whole, *whole["data"]} else None


class _Block:
    """Some records, one behind the other from `begins[0]` on in `joined`, and where their quotes are."""

    def __init__(self, joined: bytes, begins: Array, ends: Array) -> None:
        self._joined, self._begins, self._ends = joined, begins, ends
        self._from = int(begins[0])
        self._bytes = np.frombuffer(joined, np.uint8)[self._from : int(ends[-1])]
        self._quotes = np.flatnonzero(self._bytes == _QUOTE) + self._from
        self._first = np.searchsorted(self._quotes, begins)
        self._count = np.diff(self._first, append=len(self._quotes))
        self.fits = np.zeros(len(begins), bool)
        self.start, self.length = (
            {name: np.zeros(len(begins), np.int64) for name in LIMITS} for _ in range(2)
        )

    def find(self) -> None:
        """Put down where values stand, and say of which records."""
        left = np.flatnonzero(~self._odd())
        for _ in range(LAYOUTS):
            if not len(left):
                break
            counts = self._count[left]
            alike = left[counts == np.bincount(counts).argmax()]
            sample = alike[0]
            layout = learn(self._joined[self._begins[sample] : self._ends[sample]])
            if layout is not None:
                self._fit(layout, alike)
                left = left[~self.fits[left]]
            left = left[left != sample]

    def _odd(self) -> Array:
        """The records that hold nothing, or a byte that a string cannot hold or that has a meaning there."""
        odd = (self._bytes < _SPACE) | (self._bytes == _BACKSLASH)
        try:
            # A record that fits begins and ends with whole characters: it is UTF-8 where all together are.
            self._bytes.data.tobytes().decode()
        except UnicodeDecodeError:
            odd |= self._bytes >= _BEYOND_ASCII
        rows: Array = self._begins == self._ends
        rows[np.searchsorted(self._ends, np.flatnonzero(odd) + self._from, "right")] = True
        return rows

    def _fit(self, layout: Layout, rows: Array) -> None:
        """Put down where values stand in those of the rows that are this layout with other values."""
        opens, at, whole = self._first[rows], self._begins[rows], int(self._count[rows[0]])
        spans, pieces, good = [], [], np.ones(len(rows), bool)
        for place in layout.places:
            begin = self._quotes[opens + place.first] + place.after
            end = self._ends[rows] if place.last == whole else self._quotes[opens + place.last]
            end = end - place.before
            low, high = LIMITS[place.name]
            good &= (begin - at == len(place.piece)) & (end - begin >= low) & (end - begin <= high)
            spans.append((place.name, begin, end - begin))
            pieces.append((at, place.piece))
            at = end
        good &= self._ends[rows] - at == len(layout.tail)
        for there, piece in [*pieces, (at, layout.tail)]:
            # Only where lengths agree is it sure that a piece lies within the records.
            kept = np.flatnonzero(good)
            found = windows(self._joined, len(piece))[there[kept]]
            # Mostly they are all the same, and one comparison of memory says so.
            if found.tobytes() != piece * len(kept):
                letters = found.view(np.uint8).reshape(-1, len(piece))
                good[kept] = (letters == np.frombuffer(piece, np.uint8)).all(axis=1)
        kept = np.flatnonzero(good)
        for name, begin, size in spans:
            self.start[name][rows[kept]], self.length[name][rows[kept]] = begin[kept], size[kept]
        self.fits[rows[kept]] = True


def find_values(records: Sequence[bytes]) -> Values:
    """The values of these records, of each that a layout fits."""
    size = len(records)
    fits, lengths = np.zeros(size, bool), np.zeros(size, np.int64)
    columns = {name: Column(size) for name in LIMITS if name != "time"}
    times = np.zeros((size, LONGEST_TIME), np.uint8)
    for rows, joined, block in _blocks(records):
        fits[rows] = block.fits
        for name, column in columns.items():
            column.put(rows, joined, block.start[name], block.length[name])
        found = windows(joined, LONGEST_TIME)[block.start["time"]]
        times[rows] = found.view(np.uint8).reshape(-1, LONGEST_TIME)
        lengths[rows] = block.length["time"]
    return Values(fits, {name: column.series(name) for name, column in columns.items()}, times, lengths)


def _blocks(records: Sequence[bytes]) -> Iterator[tuple[slice, bytes, _Block]]:
    for low in range(0, len(records), BLOCK):
        some = [record if len(record) <= LONGEST else b"" for record in records[low : low + BLOCK]]
        joined = b"".join([*some, bytes(LONGEST)])
        ends = np.cumsum(np.fromiter(map(len, some), np.int64, len(some)))
        block = _Block(joined, np.concatenate([np.zeros(1, np.int64), ends[:-1]]), ends)
        block.find()
        yield slice(low, low + len(some)), joined, block


def windows(data: bytes, size: int) -> Array:
    """Every `size` bytes in a row, by the place of the first."""
    return np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))
