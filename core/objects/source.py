"""What is to be put, brought into a form whose size and hash are known before it is sent."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PIECE: Final = 1 << 20
"""Bytes of a piece that is read or written at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """Content with its size and hash: in memory, or in a file that stands still meanwhile."""

    size: int
    sha256: str
    data: bytes | None
    path: Path | None

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end (blocking)."""
        if self.data is not None:
            return self.data[start : start + length]
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


@asynccontextmanager
async def source(
    data: bytes | Path | AsyncIterator[bytes], folder: Path | None = None
) -> AsyncIterator[Source]:
    """The content's `Source`. A stream is first written to a temporary file (in `folder`)."""
    if isinstance(data, bytes):
        yield Source(len(data), hashlib.sha256(data).hexdigest(), data, None)
    elif isinstance(data, Path):
        size, digest = await asyncio.to_thread(hash_file, data)
        yield Source(size, digest, None, data)
    else:
        handle, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                size, digest = await write_stream(file.fileno(), data)
            yield Source(size, digest, None, path)
        finally:
            os.unlink(name)


async def write_stream(descriptor: int, data: AsyncIterator[bytes]) -> tuple[int, str]:
    """Write the pieces to an open file; returns size and SHA-256."""
    size, digest = 0, hashlib.sha256()

    def write(piece: bytes) -> None:
        digest.update(piece)
        write_all(descriptor, piece)

    async for piece in data:
        size += len(piece)
        await asyncio.to_thread(write, piece)
    return size, digest.hexdigest()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes: the system may take fewer than it is given (blocking)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file (blocking)."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()
