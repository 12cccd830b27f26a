"""Lines on the local disk before an answer is given, sent to the database later, each segment once.

One `os.write` appends a line to the current segment; a kill of the process loses nothing that was
written, because the kernel has it. Segments live in a folder of their own per process, locked while the
process lives, so that a later one can tell what a dead one left behind.

    spool/<uuid7 of the process>/lock
    spool/<uuid7 of the process>/<milliseconds since 1970>-<uuid7>.seg
"""

import asyncio
import fcntl
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import uuid_utils
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError

from core.log import Logger
from core.tasks import cancel

SUFFIX: Final = ".seg"
MAX_PAUSE: Final = 5.0
CLOSE_SECONDS: Final = 2.0
_LOCK: Final = "lock"

WAITING: Final = Gauge("spool_segments", "Closed segments that wait to be sent")
UNREADABLE: Final = Counter("spool_unreadable", "Segments set aside because they cannot be read")
_LOG = Logger("services.spool")


class Spool:
    """The current segment of this process."""

    def __init__(self, folder: Path) -> None:
        self.closed: deque[Path] = deque()
        """Segments that wait to be sent, oldest first."""
        self._folder = folder
        name = str(uuid_utils.uuid7())
        fresh = folder / f".{name}"
        fresh.mkdir(parents=True, mode=0o700)
        lock = _try_lock(fresh)
        if lock is None:
            raise RuntimeError(f"{fresh}: a fresh folder is locked; use a spool folder on a local disk")
        self._locks = [lock]
        # Locked before it has its name, so that no other process takes it for one left behind.
        self._own = fresh.rename(folder / name)
        self._segment, self._path, self._written = -1, self._own, False
        self._open()

    def append(self, line: bytes) -> None:
        """Keep one line, without its end.

        Raises:
            OSError: it is not kept (disk full); nothing must be answered as if it were.
        """
        self._written = True
        if os.write(self._segment, line + b"\n") != len(line) + 1:
            self.rotate()
            raise OSError("the segment took only a part of a line")

    async def sync(self) -> None:
        """Return when what was appended survives a loss of power too. Raises: OSError."""
        descriptor = os.dup(self._segment)
        try:
            await asyncio.to_thread(os.fdatasync, descriptor)
        finally:
            os.close(descriptor)

    def rotate(self) -> None:
        """Close the current segment and begin a new one; nothing happens where nothing was appended."""
        if not self._written:
            return
        path, descriptor = self._path, self._segment
        self._open()
        os.close(descriptor)
        self.closed.append(path)

    def adopt(self) -> int:
        """Take over the segments of processes that are gone; returns how many."""
        found: list[Path] = []
        for folder in sorted(self._folder.iterdir()):
            if folder == self._own or folder.name.startswith(".") or not folder.is_dir():
                continue
            lock = _try_lock(folder)
            if lock is None:
                continue
            segments = sorted(folder.glob(f"*{SUFFIX}"))
            if segments:
                found += segments
                self._locks.append(lock)
            else:
                (folder / _LOCK).unlink()
                folder.rmdir()
                os.close(lock)
        self.closed.extendleft(reversed(found))
        return len(found)

    async def check(self) -> None:
        """Readiness: can a segment be made? Raises: OSError."""
        probe = self._own / ".probe"
        probe.write_bytes(b"x")
        probe.unlink()

    def close(self) -> None:
        """Give the folders back. What is still in them is for the next process."""
        os.close(self._segment)
        if not self._written:
            self._path.unlink()
        for lock in self._locks:
            os.close(lock)

    def _open(self) -> None:
        path = self._own / f"{time.time_ns() // 1_000_000}-{uuid_utils.uuid7()}{SUFFIX}"
        self._segment = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._path, self._written = path, False


class Courier:
    """The background task that rotates and sends.

    Args:
        send: makes what a segment says durable once, however often it is called; raises ValueError for a
            segment that cannot be read, and what it likes where it should be called again.
        rotate_seconds: a line waits so long at most.
    """

    def __init__(
        self, spool: Spool, send: Callable[[Path], Awaitable[None]], *, rotate_seconds: float = 1.0
    ) -> None:
        self._spool, self._send, self._every = spool, send, rotate_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        adopted = self._spool.adopt()
        if adopted:
            _LOG.info("sending what an earlier process left", segments=adopted)
        self._task = asyncio.create_task(self._run(), name="spool")

    async def close(self) -> None:
        """Send what there is within `CLOSE_SECONDS`; the rest waits for the next process."""
        if self._task is not None:
            await cancel(self._task)
        self._spool.rotate()
        with suppress(TimeoutError, SQLAlchemyError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
        self._spool.close()

    async def flush(self) -> None:
        """Send all closed segments. Raises what sending raises; nothing is lost by that."""
        while self._spool.closed:
            WAITING.set(len(self._spool.closed))
            await self._send_one(self._spool.closed[0])
            self._spool.closed.popleft()
        WAITING.set(0)

    async def _run(self) -> None:
        pause = self._every
        while True:
            await asyncio.sleep(pause)
            try:
                self._spool.rotate()
                await self.flush()
                pause = self._every
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                pause = min(max(pause, 0.5) * 2, MAX_PAUSE)
                _LOG.warn(
                    "lines wait on disk, will try again",
                    error=type(error).__name__,
                    segments=len(self._spool.closed),
                )

    async def _send_one(self, path: Path) -> None:
        try:
            await self._send(path)
        except ValueError as error:
            UNREADABLE.inc()
            await asyncio.to_thread(path.rename, path.with_suffix(".unreadable"))
            _LOG.error(
                "a segment of the spool cannot be read and was set aside", exc=error, segment=path.name
            )
            return
        await asyncio.to_thread(path.unlink)


def lines_of(path: Path) -> list[bytes]:
    """What was appended to a segment.

    A last line without its end was being written when the process was killed: nothing was answered for
    it, and it does not count.
    """
    return path.read_bytes().split(b"\n")[:-1]


def _try_lock(folder: Path) -> int | None:
    """An exclusive lock that ends with the process that holds the descriptor."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
