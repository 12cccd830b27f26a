"""Writing runs of the identity index: of a new slice, and of runs that become one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from assets.slices import filters
from assets.slices.runs import MASK, SPACING, WIDTH, DamagedError, Reader, Run, Sums, sections, sum_of

PIECE = 1 << 15
"""Identities that a merge sorts at once: they fit into the cache of a core."""
BLOCK, LARGE_BLOCK, LARGE = 1 << 20, 1 << 21, 1 << 24
"""Bytes that are written at once; in files from `LARGE` bytes on as many as a huge page has."""
_PARTS = 1000
"""Of one write, of which the kernel takes 1,024."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fresh:
    """The sorted keys of a new slice."""

    keys: Array
    ordinals: Array

    def __len__(self) -> int:
        return len(self.keys)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        yield partial(_copy, self)


def write_run(file: BinaryIO, parts: Sequence[Run | Fresh]) -> Sums:
    """The parts as one run. Piece by piece: a hundred million need no more memory than a million.

    Raises:
        DamagedError: a part is not what was written.
    """
    lengths = sections(sum(map(len, parts)))
    file.truncate(sum(lengths) * WIDTH)
    block = LARGE_BLOCK if sum(lengths) * WIDTH >= LARGE else BLOCK
    written = filter_, fences, all_keys, all_ordinals = [
        _Section(file.fileno(), start * WIDTH, block) for start in accumulate(lengths[:-1], initial=0)
    ]
    builder, at = filters.Builder(lengths[0]), 0
    for keys, ordinals in _merged(parts):
        filter_.add(builder.add(keys))
        fences.add(keys[-at % SPACING :: SPACING])
        all_keys.add(keys)
        all_ordinals.add(ordinals)
        at += len(keys)
    filter_.add(builder.rest())
    for each in written:
        each.write()
    sums = filter_.sum & MASK, fences.sum & MASK, all_keys.sum & MASK, all_ordinals.sum & MASK
    if any(isinstance(each, Run) for each in parts):
        _compare(parts, sums)
    return sums


def _compare(parts: Sequence[Run | Fresh], sums: Sums) -> None:
    """What was written holds what the parts held when they were written, and all that they are looked up by is whole."""
    before = [
        each.sums[2:] if isinstance(each, Run) else (sum_of(each.keys), sum_of(each.ordinals))
        for each in parts
    ]
    damaged = [
        each.path.name for each in parts if isinstance(each, Run) and each.looked_up() != each.sums[:2]
    ]
    if damaged or sums[2:] != tuple(sum(each) & MASK for each in zip(*before, strict=True)):
        names = damaged or [each.path.name for each in parts if isinstance(each, Run)]
        raise DamagedError(f"the identity index is damaged in {', '.join(names)}")


def order_of(keys: Array) -> Array:
    """A stable order of keys: of hashes by a radix sort, which leaves little to the comparisons after it."""
    if not len(keys) or bool((keys[:-1] <= keys[1:]).all()):
        return np.arange(len(keys))
    above = keys - keys.min()
    above >>= np.uint64(max(0, int(above.max()).bit_length() - 16))
    coarse = np.argsort(above.astype(np.uint16), kind="stable")
    order: Array = coarse[np.argsort(keys.take(coarse), kind="stable")]
    return order


class _Section:
    """Writes numbers one after another into a part of a file, in blocks that begin at multiples of their size: what the
    kernel gets so it keeps in large folios, and to map those later costs a tenth of what single pages cost."""

    def __init__(self, descriptor: int, start: int, block: int) -> None:
        self._descriptor, self._at, self._block = descriptor, start, block
        self._held, self._size = list[memoryview](), 0
        self.sum = 0

    def add(self, values: Array) -> None:
        self.sum += sum_of(values)
        data = np.ascontiguousarray(values).view(np.uint8).data
        while len(self._held) == _PARTS or self._size + len(data) >= self._block - self._at % self._block:
            room = self._block - self._at % self._block - self._size
            self._hold(data[:room])
            data = data[room:]
            self.write()
        self._hold(data)

    def write(self) -> None:
        """What is held."""
        if self._size and os.pwritev(self._descriptor, self._held, self._at) != self._size:
            raise OSError("a run of the identity index was not written whole")
        self._at, self._held, self._size = self._at + self._size, [], 0

    def _hold(self, data: memoryview) -> None:
        if data:
            self._held.append(data)
            self._size += len(data)


def _merged(parts: Sequence[Run | Fresh]) -> Iterator[tuple[Array, Array]]:
    """Sorted keys and their ordinals, in pieces."""
    if len(parts) == 1 and isinstance(parts[0], Fresh):
        yield parts[0].keys, parts[0].ordinals
        return
    largest = max(parts, key=len)
    step = max(1, PIECE * len(largest) // sum(map(len, parts)))
    edges = largest.keys[step::step]
    cuts = [[0, *np.searchsorted(part.keys, edges).tolist(), len(part)] for part in parts]
    with ExitStack() as stack:
        readers = [stack.enter_context(part.reader()) for part in parts]
        for begins, ends in pairwise(zip(*cuts, strict=True)):
            length = sum(ends) - sum(begins)
            keys, ordinals, at = np.empty(length, np.uint64), np.empty(length, np.uint64), 0
            for reader, begin, end in zip(readers, begins, ends, strict=True):
                if begin < end:
                    to = at + end - begin
                    reader(begin, keys[at:to], ordinals[at:to])
                    at = to
            if length:
                order = order_of(keys)
                yield keys.take(order), ordinals.take(order)


def _copy(part: Fresh, begin: int, keys: Array, ordinals: Array) -> None:
    keys[:] = part.keys[begin : begin + len(keys)]
    ordinals[:] = part.ordinals[begin : begin + len(ordinals)]
