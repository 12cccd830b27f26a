"""The identity index: has this event ever been counted, and what did it say?

Exact and without expiry. An identity is 16 bytes; the first 8 are the search key, all 16 decide. The
searched part is a few sorted runs of (key, ordinal), merged as they grow (a log-structured merge tree,
O'Neil et al. 1996), so a probe of a slice costs the same after a year as on the first day; the
details of each identity stand once, in an append-only file, and are read only for hits.

The index is a cache of `usage_events`: its manifest names the table and the last slice it covers, and
whatever is missing is read from there. All files are fsynced before the manifest names them, because
an index that had silently lost an entry would count an event twice.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core import crash
from core.crash import Point

ENTRY = np.dtype(
    [("low", "<u8"), ("content", "<i8"), ("offset", "<i8"), ("slice", "<i4"), ("partition", "<i4")]
)
KEY, ORDINAL = 0, 1
"""Rows of a run: an array of uint64 of shape (2, n), so that keys lie side by side for the search."""
MERGED_AT_ONCE = 1_000_000
"""Identities of the largest run that a merge holds in memory."""
_LOOKS = 3
"""A merge may remove a run between a reader's look at the manifest and at the run."""
RATIO = 2
"""A run is merged into the one before while that one is less than this many times its size. With 4 the runs are two
fewer and each identity is written twice as often, which costs more."""

MARKED_FROM = 1_000_000
"""Identities from which on a run has marks. Below, they save less than it costs to make them."""
MARKS = 16
"""At least so many bits a key, so at most one in sixteen of what a run does not have is searched in it."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Run:
    """Sorted keys with their ordinals, and for a large one which of all prefixes of keys it has, a bit each.

    A slice is mostly new, and to find that out in ten million keys costs 11 ms by search and 2 ms by marks.
    """

    name: str
    pairs: Array
    marks: Array | None

    def __len__(self) -> int:
        return int(self.pairs.shape[1])

    def find(self, high: Array) -> tuple[Array, Array]:
        """Rows of `high` (sorted) whose key is here, and where the first of such keys stands."""
        rows = None if self.marks is None else np.flatnonzero(self._marked(self.marks, high))
        wanted = high if rows is None else high[rows]
        keys = np.asarray(self.pairs)[KEY]
        start = np.minimum(np.searchsorted(keys, wanted, "left"), len(keys) - 1)
        hits = np.flatnonzero(keys[start] == wanted)
        return (hits if rows is None else rows[hits]), start[hits]

    @staticmethod
    def _marked(marks: Array, high: Array) -> Array:
        byte, bit = _places(high, len(marks))
        found: Array = marks[byte] & bit
        return found


class Marker:
    """Writes the marks of a run, whose keys come sorted, so that it holds only those of a piece."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._length = file, _marks_length(size)
        self._last, self._held = -1, np.uint8(0)
        file.truncate(self._length)

    def add(self, keys: Array) -> None:
        byte, bit = _places(keys, self._length)
        first, last = int(byte[0]), int(byte[-1])
        marks = np.zeros(last - first + 1, np.uint8)
        np.bitwise_or.at(marks, byte - first, bit)
        if first == self._last:
            marks[0] |= self._held  # the piece before ended in the same byte
        self._last, self._held = last, marks[-1]
        self._file.seek(first)
        self._file.write(marks.data)


@dataclass(frozen=True, slots=True)
class Winners:
    """Identities counted for the first time, as parallel arrays."""

    high: Array
    low: Array
    content: Array
    partition: Array
    offset: Array

    def __len__(self) -> int:
        return len(self.high)


@dataclass(frozen=True, slots=True)
class Probe:
    """For each probed identity whether it is known, and where and with what content it was counted."""

    known: Array
    content: Array
    slice: Array
    partition: Array
    offset: Array


class IdentityIndex:
    """The index in `folder`, for the table `table_id`. Use `with index.locked():` around read and add."""

    def __init__(self, folder: Path, table_id: str) -> None:
        self._folder, self._table_id = folder, table_id
        self._slice, self._count = 0, 0
        self._runs: list[Run] = []
        self._entries: Array = np.zeros(0, ENTRY)

    @property
    def slice(self) -> int:
        """The last slice whose identities are here."""
        return self._slice

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, on this machine; waits. Loads what is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            yield

    @classmethod
    def as_it_is(cls, folder: Path, table_id: str) -> "IdentityIndex | None":
        """The index as its owner saved it last, only to probe: takes no lock and changes nothing. None where
        there is none of this table."""
        for _ in range(_LOOKS):
            index = cls(folder, table_id)
            if index._read():
                return index
        return None

    def clear(self) -> None:
        """Forget everything: the table in the lake is not the one this index was built from."""
        for path in self._folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._slice, self._count, self._runs, self._entries = 0, 0, [], np.zeros(0, ENTRY)

    def probe(self, high: Array, low: Array) -> Probe:
        """Look up identities, sorted by (high, low) and distinct."""
        ordinal = np.full(len(high), -1, np.int64)
        for run in self._runs:
            rows, start = run.find(high)
            # Eight equal bytes are a hint; the other eight decide.
            candidates = run.pairs[ORDINAL][start].astype(np.int64)
            same = self._entries["low"][candidates] == low[rows]
            ordinal[rows[same]] = candidates[same]
            for row, position in zip(rows[~same].tolist(), start[~same].tolist(), strict=True):
                self._look_further(run.pairs, position, row, high, low, ordinal)
        known = ordinal >= 0
        entries = np.zeros(len(high), ENTRY)
        if known.any():
            entries[known] = self._entries[ordinal[known]]
        return Probe(
            known,
            entries["content"],
            entries["slice"].astype(np.int64),
            entries["partition"],
            entries["offset"],
        )

    def _look_further(
        self, run: Array, position: int, hit: int, high: Array, low: Array, ordinal: Array
    ) -> None:
        """Several identities begin with the same eight bytes; go through them."""
        while position < run.shape[1] and run[KEY, position] == high[hit]:
            candidate = int(run[ORDINAL, position])
            if self._entries["low"][candidate] == low[hit]:
                ordinal[hit] = candidate
                return
            position += 1

    def add(self, number: int, winners: Winners) -> None:
        """Add the identities of slice `number`, the one after the last."""
        if number != self._slice + 1:
            raise ValueError(f"the index holds slices up to {self._slice}; slice {number} does not come next")
        entries = np.zeros(len(winners), ENTRY)
        entries["low"], entries["content"], entries["offset"] = winners.low, winners.content, winners.offset
        entries["slice"], entries["partition"] = number, winners.partition
        self._append(entries)
        crash.here(Point.INDEXING)
        order = np.argsort(winners.high, kind="stable")
        run = np.stack([winners.high[order], order.astype(np.uint64) + np.uint64(self._count)])
        self._count += len(winners)
        self._slice = number
        if len(winners):
            self._add_run(run)
        self._save()

    def _append(self, entries: Array) -> None:
        path = self._folder / "entries.bin"
        with path.open("r+b" if path.exists() else "w+b") as file:
            # What a killed predecessor appended without naming it in the manifest is overwritten.
            file.truncate(self._count * ENTRY.itemsize)
            file.seek(0, os.SEEK_END)
            file.write(entries.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._entries = np.memmap(path, ENTRY, "r") if path.stat().st_size else np.zeros(0, ENTRY)

    def _add_run(self, run: Array) -> None:
        parts, size = [run], run.shape[1]
        while self._runs and len(self._runs[-1]) < RATIO * size:
            before = self._runs.pop()
            parts.insert(0, before.pairs)
            size += len(before)
        name = f"run-{self._slice:012d}-{size}.npy"
        with _replaced(self._folder / name) as file:
            if size < MARKED_FROM:
                _write_merged(file, parts, size)
            else:
                with _replaced(_marks_file(self._folder / name)) as marked:
                    _write_merged(file, parts, size, Marker(marked, size))
        self._runs.append(_open_run(self._folder / name))

    def _save(self) -> None:
        manifest = {
            "table": self._table_id,
            "slice": self._slice,
            "entries": self._count,
            "runs": [[run.name, len(run)] for run in self._runs],
        }
        with _replaced(self._folder / "manifest.json") as file:
            file.write(json.dumps(manifest).encode())
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        named = {Path(run.name).stem for run in self._runs}
        for path in self._folder.glob("run-*"):
            if path.stem not in named:
                path.unlink()

    def _load(self) -> None:
        """Read the manifest; anything that is not as it says means starting again from the lake."""
        if not self._read():
            self.clear()

    def _read(self) -> bool:
        try:
            manifest = json.loads((self._folder / "manifest.json").read_text())
            runs = [_open_run(self._folder / name) for name, _ in manifest["runs"]]
            count = int(manifest["entries"])
            whole = all(
                run.pairs.shape == (2, length)
                for run, (_, length) in zip(runs, manifest["runs"], strict=True)
            )
            path = self._folder / "entries.bin"
            whole = whole and (count == 0 or path.stat().st_size >= count * ENTRY.itemsize)
            entries = np.memmap(path, ENTRY, "r", shape=(count,)) if count else np.zeros(0, ENTRY)
        except (OSError, EOFError, ValueError, KeyError):
            whole, manifest = False, {}
        if not whole or manifest["table"] != self._table_id:
            return False
        self._slice, self._count, self._runs, self._entries = int(manifest["slice"]), count, runs, entries
        return True


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _open_run(path: Path) -> Run:
    pairs, marks = np.load(path, mmap_mode="r"), None
    # Without its marks a run is searched whole; with others it would lose entries.
    if (file := _marks_file(path)).exists() and file.stat().st_size == _marks_length(pairs.shape[1]):
        marks = np.asarray(np.memmap(file, np.uint8, "r"))
    return Run(path.name, pairs, marks)


def _marks_file(path: Path) -> Path:
    return path.with_suffix(".marks")


def _marks_length(size: int) -> int:
    """Bytes: a power of two, at least two."""
    return max(2, (1 << (MARKS * size - 1).bit_length()) // 8)


def _places(keys: Array, length: int) -> tuple[Array, Array]:
    """Of each key the byte that its prefix is marked in, of `length` (a power of two), and its bit there."""
    prefix = keys >> np.uint64(64 - (8 * length - 1).bit_length())
    return (prefix >> np.uint64(3)).astype(np.int64), np.uint8(1) << (prefix & np.uint64(7)).astype(np.uint8)


def _write_merged(file: BinaryIO, parts: Sequence[Array], size: int, marker: Marker | None = None) -> None:
    """Sorted runs as one, in the format of `np.load`, piece by piece: a merge of a hundred million needs no
    more memory than one of a few."""
    header = {"descr": "<u8", "fortran_order": False, "shape": (2, size)}
    np.lib.format.write_array_header_1_0(file, header)
    start = file.tell()
    largest = max(parts, key=lambda part: int(part.shape[1]))
    edges = largest[KEY, MERGED_AT_ONCE::MERGED_AT_ONCE]
    cuts = [[0, *np.searchsorted(part[KEY], edges).tolist(), part.shape[1]] for part in parts]
    at = 0
    for piece in range(len(edges) + 1):
        spans = [(part, cut[piece], cut[piece + 1]) for part, cut in zip(parts, cuts, strict=True)]
        keys = np.concatenate([_piece(part, KEY, *span) for part, *span in spans])
        # The sort is stable and finds the runs sorted (Timsort): linear.
        order = np.argsort(keys, kind="stable")
        ordinals = np.concatenate([_piece(part, ORDINAL, *span) for part, *span in spans])
        for row, values in ((KEY, keys), (ORDINAL, ordinals)):
            ordered = values.take(order)
            file.seek(start + 8 * (row * size + at))
            file.write(ordered.data)
            if row == KEY and marker is not None and len(ordered):
                marker.add(ordered)
        at += len(order)


def _piece(run: Array, row: int, first: int, last: int) -> Array:
    """Columns [first, last) of a row. Read from the file, not through the mapping, whose pages would stay resident."""
    if not isinstance(run, np.memmap):
        return run[row, first:last]
    at = run.offset + 8 * (row * run.shape[1] + first)
    return np.fromfile(str(run.filename), np.uint64, last - first, offset=at)
