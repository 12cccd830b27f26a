"""Runs of the identity index: immutable files of sorted keys with their ordinals, and what finds them quickly.

A file is an array of numbers of 64 bits in four sections, whose lengths follow from how many keys there are: a filter,
which tells of almost all keys that they are not here; fences, every 16th key, which say where a key would stand; the
keys; their ordinals. So a key that is here costs a page or two however long the run is, and another costs none.

Beside the file stands the sum of each section, modulo 2^64. Where runs become one, sums of keys and ordinals add up,
so to compare them costs no more than to make the new ones; a bit that flipped in any section shows.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assets.slices import filters
from assets.slices.filters import Question

SPACING = 16
"""Keys from one fence to the next."""
WIDTH = 8
"""Bytes of a number."""
MASK = 2**64 - 1
_BUFFER = 1 << 15
_NEAR = np.arange(-1, SPACING)
"""From the last key before a fence to the last before the next."""

Array = npt.NDArray[Any]
Sums = tuple[int, int, int, int]
"""Of filter, fences, keys and ordinals."""
Reader = Callable[[int, Array, Array], None]
"""Copies keys and ordinals from a position on, as many as there is room for."""


class DamagedError(Exception):
    """A file of the index is not what was written: identities may have been missed since, and counted twice."""


@dataclass(frozen=True, slots=True)
class Run:
    """Arrays over the file at `path`."""

    path: Path
    level: int
    filter: Array
    fences: Array
    keys: Array
    ordinals: Array
    sums: Sums
    """As they were when it was written."""

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, asked: Question) -> tuple[Array, Array]:
        """Rows of the question whose key is here, and its ordinal; several times where several are equal."""
        rows, found = asked.passing(self.filter), list[tuple[Array, Array]]()
        fence = np.maximum(np.searchsorted(self.fences, asked.keys[rows], "right") - 1, 0)
        while len(rows):
            at = fence[:, None] * SPACING + _NEAR
            equal = self.keys.take(at, mode="clip") == asked.keys[rows][:, None]
            begins_before = equal[:, 0] & (fence > 0)
            equal[:, 0] = False
            equal &= at < len(self)
            hits = equal.nonzero()
            found.append((rows[hits[0]], self.ordinals.take(at[hits])))
            rows, fence = rows[begins_before], fence[begins_before] - 1
        return joined(found)

    def looked_up(self) -> tuple[int, int]:
        """Sums of filter and fences, which a merge does not read otherwise, as they lie in the file now."""
        found, at, buffer = list[int](), 0, np.empty(_BUFFER, np.uint64)
        with self.path.open("rb", buffering=0) as file:
            for length in sections(len(self))[:2]:
                total, end = 0, at + length
                while at < end:
                    part = buffer[: end - at]
                    if os.preadv(file.fileno(), [part.data], WIDTH * at) != part.nbytes:
                        raise OSError("a run of the identity index ends early")
                    total, at = total + sum_of(part), at + len(part)
                found.append(total & MASK)
        return found[0], found[1]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Reads the file, not through the mapping, whose pages would stay resident."""
        with self.path.open("rb", buffering=0) as file:
            yield partial(_read, file.fileno(), sum(sections(len(self))[:2]), len(self))


def sum_of(values: Array) -> int:
    """Modulo 2^64."""
    return int(np.add.reduce(values, dtype=np.uint64))


def joined(found: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Rows and ordinals that were found here and there."""
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([ordinals for _, ordinals in found])


def name(slice_: int, size: int) -> str:
    """Of the file of a run whose youngest identities are of this slice."""
    return f"run-{slice_:012d}-{size}.bin"


def open_run(path: Path, level: int, size: int, sums: Sums) -> Run:
    """
    Raises:
        OSError: no such file.
        ValueError: it is not as long as a run of this size.
    """
    lengths = sections(size)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stored = os.fstat(descriptor).st_size
        if stored != sum(lengths) * WIDTH:
            raise ValueError(f"{path} has {stored} bytes")
        whole = np.frombuffer(mmap.mmap(descriptor, stored, access=mmap.ACCESS_READ), "<u8")
    finally:
        os.close(descriptor)
    filter_, fences, keys, ordinals = (
        whole[end - n : end] for n, end in zip(lengths, accumulate(lengths), strict=True)
    )
    return Run(path, level, filter_, fences, keys, ordinals, sums)


def sections(size: int) -> tuple[int, int, int, int]:
    """Lengths of filter, fences, keys and ordinals."""
    return filters.words(size), -(-size // SPACING), size, size


def _read(descriptor: int, start: int, size: int, begin: int, keys: Array, ordinals: Array) -> None:
    for into, at in ((keys, start + begin), (ordinals, start + size + begin)):
        if os.preadv(descriptor, [into.data], WIDTH * at) != into.nbytes:
            raise OSError("a run of the identity index ends early")
