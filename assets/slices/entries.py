"""What is known of each identity, in the order in which they were counted: a file that only grows.

Each entry says by 16 bits that it is what was written, and is believed only then.
"""

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assets.slices.runs import DamagedError

ENTRY = np.dtype(
    [
        ("low", "<u8"),
        ("content", "<i8"),
        ("offset", "<i8"),
        ("slice", "<i4"),
        ("partition", "<i2"),
        ("check", "<u2"),
    ]
)
"""`low` is the half of the identity that runs do not have."""
_ZEROS = 0x9E37
"""What an entry of zeros would have to say, so that a hole is none."""
MANY = 4096
"""Entries that are no longer read one by one: a few lie in so many pages that it costs more to map them."""

Array = npt.NDArray[Any]


class Entries:
    """The first `count` entries of the file at `path`; what stands behind them was never named by a manifest.

    Raises:
        OSError: there is no file of entries.
        ValueError: it has fewer.
    """

    def __init__(self, path: Path, count: int = 0) -> None:
        self._path, self._count = path, count
        self._descriptor = self._open(os.O_RDONLY) if count else -1
        if count and os.fstat(self._descriptor).st_size < count * ENTRY.itemsize:
            raise ValueError(f"{path} has fewer than {count} entries")

    def __len__(self) -> int:
        return self._count

    def at(self, ordinals: Array) -> Array:
        """
        Raises:
            DamagedError: an entry is not what was written.
        """
        found = self._at(ordinals)
        if _damaged(found):
            raise DamagedError(f"the identity index is damaged in {self._path.name}")
        return found

    def _at(self, ordinals: Array) -> Array:
        size = ENTRY.itemsize
        if len(ordinals) > MANY:
            whole = mmap.mmap(self._descriptor, self._count * size, access=mmap.ACCESS_READ)
            return np.frombuffer(whole, ENTRY)[ordinals]
        each = [os.pread(self._descriptor, size, size * ordinal) for ordinal in ordinals.tolist()]
        return np.frombuffer(b"".join(each), ENTRY, len(each))

    def append(self, entries: Array) -> None:
        """On disk when this returns."""
        if self._descriptor < 0:
            self._descriptor = self._open(os.O_RDWR | os.O_CREAT)
        with self._path.open("r+b") as file:
            # What a killed predecessor appended without naming it in the manifest is overwritten.
            file.truncate(self._count * ENTRY.itemsize)
            file.seek(0, os.SEEK_END)
            file.write(entries.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        self._count += len(entries)

    def _open(self, flags: int) -> int:
        """Open until this object is no more, so that it goes on reading the file that it was opened on."""
        descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def entries_of(low: Array, content: Array, offset: Array, slice_: int, partition: Array) -> Array:
    """Entries of a slice, from parallel arrays of unsigned, signed and signed numbers of 64 bits, and partitions."""
    entries = np.empty(len(low), ENTRY)
    entries["low"], entries["content"], entries["offset"] = low, content, offset
    entries["slice"], entries["partition"] = slice_, partition
    check = _folded(low, content, offset)
    check ^= partition.astype(np.uint16)
    entries["check"] = check ^ _of_slice(slice_)
    return entries


def _damaged(entries: Array) -> bool:
    check = _folded(*(entries[name] for name in ("low", "content", "offset")))
    check ^= entries["partition"].astype(np.uint16)
    return bool((check ^ _of_slice(entries["slice"]) != entries["check"]).any())


def _folded(*words: Array) -> Array:
    """The exclusive or of all 16-bit parts of numbers of 64 bits."""
    folded: Array = np.zeros(len(words[0]), np.uint64)
    for each in words:
        folded ^= each.view(np.uint64)
    for half in (np.dtype(np.uint32), np.dtype(np.uint16)):
        parts: Array = folded.view(half).reshape(-1, 2)
        folded = parts[:, 0] ^ parts[:, 1]
    return folded


def _of_slice(number: Any) -> Any:
    """A slice's part in the check."""
    return np.asarray(number ^ number >> 16 ^ _ZEROS).astype(np.uint16)
