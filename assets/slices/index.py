"""The identity index: has this event ever been counted, and what did it say?

Exact and without expiry. An identity is 16 bytes; the first 8 are the search key, all 16 decide. The
searched part is a few sorted runs of (key, ordinal), each with a filter, merged as they become many (a log-structured
merge tree, O'Neil et al. 1996), so what a slice costs grows with the logarithm of history; the details of each
identity stand once, in a file that only grows, and are read only for hits.

The index is a cache of `usage_events`: its manifest names the table and the last slice it covers, and
whatever is missing is read from there. All files are fsynced before the manifest names them, because
an index that had silently lost an entry would count an event twice.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from assets.slices import runs
from assets.slices.entries import Entries, entries_of
from assets.slices.filters import Question
from assets.slices.merging import Fresh, order_of, write_run
from assets.slices.runs import DamagedError, Run, joined
from core import crash
from core.crash import Point

FORMAT = 3
"""Of the files, as the manifest says it. An index of another is made anew from the lake."""
FAN_IN = 8
"""So many runs of one level become one of the next. With more each identity is written less often, but more runs are
looked into; between 6 and 12 the sum is nearly the same."""
ENTRIES = "entries.bin"
_LOOKS = 3
"""A merge may remove a run between a reader's look at the manifest and at the run."""

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
    """Which of the probed identities are known, ascending, and of each where and with what content it was counted."""

    rows: Array
    content: Array
    slice: Array
    partition: Array
    offset: Array


class IdentityIndex:
    """The index in `folder`, for the table `table_id`. Use `with index.locked():` around read and add."""

    def __init__(self, folder: Path, table_id: str) -> None:
        self._folder, self._table_id = folder, table_id
        self._forget()

    @property
    def slice(self) -> int:
        """The last slice whose identities are here."""
        return self._slice

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, on this machine; waits. Loads what is there, and forgets it where it turns out to be
        damaged: whoever comes next makes it anew from the lake.

        Raises:
            DamagedError: of `probe` or `add`, and says what to do.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            try:
                yield
            except DamagedError as error:
                held = self._slice
                self.clear()
                raise DamagedError(
                    f"{error}, which reaches to slice {held}. It is made anew from the lake by the next run. What was "
                    "counted twice meanwhile `headrace replay run` reports for usage; audit events may stand there twice"
                ) from error

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
        self._forget()

    def _forget(self) -> None:
        self._slice, self._runs, self._entries = 0, list[Run](), Entries(self._folder / ENTRIES)

    def probe(self, high: Array, low: Array) -> Probe:
        """Look up distinct identities, sorted by `high`."""
        asked = Question(high)
        rows, ordinals = joined([run.find(asked) for run in self._runs])
        entries = self._entries.at(ordinals)
        # Eight equal bytes are a hint; the other eight decide.
        same = np.flatnonzero(entries["low"] == low[rows])
        same = same[np.argsort(rows[same])]
        entries = entries[same]
        return Probe(
            rows[same],
            entries["content"],
            entries["slice"].astype(np.int64),
            entries["partition"].astype(np.int32),
            entries["offset"],
        )

    def add(self, number: int, winners: Winners) -> None:
        """Add the identities of slice `number`, the one after the last."""
        if number != self._slice + 1:
            raise ValueError(f"the index holds slices up to {self._slice}; slice {number} does not come next")
        first = len(self._entries)
        new = entries_of(winners.low, winners.content, winners.offset, number, winners.partition)
        self._entries.append(new)
        crash.here(Point.INDEXING)
        self._slice = number
        if len(winners):
            order = order_of(winners.high)
            ordinals = order.astype(np.uint64) + np.uint64(first)
            self._add_run(Fresh(winners.high.take(order), ordinals))
            crash.here(Point.INDEXING)
        self._save()

    def _add_run(self, slice_: Fresh) -> None:
        parts, level = list[Run | Fresh]([slice_]), 0
        while len(before := [each for each in self._runs if each.level == level]) >= FAN_IN - 1:
            self._runs, parts, level = self._runs[: -len(before)], [*before, *parts], level + 1
        size = sum(map(len, parts))
        path = self._folder / runs.name(self._slice, size)
        with _replaced(path) as file:
            sums = write_run(file, parts)
        self._runs.append(runs.open_run(path, level, size, sums))

    def _save(self) -> None:
        manifest = {
            "format": FORMAT,
            "table": self._table_id,
            "slice": self._slice,
            "entries": len(self._entries),
            "runs": [[run.path.name, run.level, len(run), run.sums] for run in self._runs],
        }
        with _replaced(self._folder / "manifest.json") as file:
            file.write(json.dumps(manifest).encode())
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        named = {run.path.name for run in self._runs}
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
            if manifest.get("format") != FORMAT or manifest["table"] != self._table_id:
                return False
            opened = [
                runs.open_run(self._folder / name, level, size, tuple(sums))
                for name, level, size, sums in manifest["runs"]
            ]
            entries = Entries(self._folder / ENTRIES, int(manifest["entries"]))
        except (OSError, EOFError, ValueError, KeyError):
            return False
        self._slice, self._runs, self._entries = int(manifest["slice"]), opened, entries
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
