"""Folders for work in progress. What a killed process left, the next one of the same purpose removes: copies of
documents and of usage are in them."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder of this process's own (0700), gone with the block or, after a SIGKILL, with the next of its purpose.

    Each is locked as long as its process lives.
    """
    _sweep(purpose)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"headrace-{purpose}-"))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else somebody swept it between the two lines above
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep(purpose: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"headrace-{purpose}-*"):
        # Of another user, or gone meanwhile, or in use.
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
