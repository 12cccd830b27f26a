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

Array = npt.NDArray[Any]


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
        self._runs: list[tuple[str, Array]] = []
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
        for _, run in self._runs:
            start = np.searchsorted(run[KEY], high, "left")
            start = np.minimum(start, run.shape[1] - 1)
            hits = np.flatnonzero(run[KEY][start] == high)
            # Eight equal bytes are a hint; the other eight decide.
            candidates = run[ORDINAL][start[hits]].astype(np.int64)
            same = self._entries["low"][candidates] == low[hits]
            ordinal[hits[same]] = candidates[same]
            for hit in hits[~same]:
                self._look_further(run, int(start[hit]), int(hit), high, low, ordinal)
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
        while self._runs and self._runs[-1][1].shape[1] < RATIO * size:
            _, before = self._runs.pop()
            parts.insert(0, before)
            size += before.shape[1]
        name = f"run-{self._slice:012d}-{size}.npy"
        temporary = self._folder / f"{name}.tmp"
        with temporary.open("wb") as file:
            _write_merged(file, parts, size)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)
        self._runs.append((name, np.load(self._folder / name, mmap_mode="r")))

    def _save(self) -> None:
        manifest = {
            "table": self._table_id,
            "slice": self._slice,
            "entries": self._count,
            "runs": [[name, run.shape[1]] for name, run in self._runs],
        }
        temporary = self._folder / "manifest.tmp"
        with temporary.open("w") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / "manifest.json")
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        named = {name for name, _ in self._runs}
        for path in self._folder.glob("run-*"):
            if path.name not in named:
                path.unlink()

    def _load(self) -> None:
        """Read the manifest; anything that is not as it says means starting again from the lake."""
        if not self._read():
            self.clear()

    def _read(self) -> bool:
        try:
            manifest = json.loads((self._folder / "manifest.json").read_text())
            runs = [(name, np.load(self._folder / name, mmap_mode="r")) for name, _ in manifest["runs"]]
            count = int(manifest["entries"])
            whole = all(
                run.shape == (2, length) for (_, run), (_, length) in zip(runs, manifest["runs"], strict=True)
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


def _write_merged(file: BinaryIO, parts: Sequence[Array], size: int) -> None:
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
            file.seek(start + 8 * (row * size + at))
            file.write(values.take(order).data)
        at += len(order)


def _piece(run: Array, row: int, first: int, last: int) -> Array:
    """Columns [first, last) of a row. Read from the file, not through the mapping, whose pages would stay resident."""
    if not isinstance(run, np.memmap):
        return run[row, first:last]
    at = run.offset + 8 * (row * run.shape[1] + first)
    return np.fromfile(str(run.filename), np.uint64, last - first, offset=at)
