"""Log files of the supervised processes: appended by the process itself, bounded by us.

The process writes to the file and not through a pipe of ours: a pipe would break when the launcher
dies, and would block the process when the launcher is slow.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 10_000_000
KEPT = 3


def rotate(file: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> bool:
    """Copy a file that grew too large to `file.1` and empty it; True where that was done.

    The writer keeps its descriptor; it was opened for appending, so the next line lands at the new
    end. Lines written during the copy are lost with the truncation: milliseconds, every 10 MB.
    """
    try:
        if file.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(kept, 1, -1):
        older = file.with_name(f"{file.name}.{number - 1}")
        if older.exists():
            older.replace(file.with_name(f"{file.name}.{number}"))
    shutil.copyfile(file, file.with_name(f"{file.name}.1"))
    os.truncate(file, 0)
    return True


def tail(file: Path, lines: int) -> list[str]:
    """The last lines of a log, none where it does not exist yet."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 400 * lines - 4000))
            return stream.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def follow(files: dict[str, Path], *, poll_seconds: float = 0.3) -> Iterator[tuple[str, str]]:
    """(name, line) as lines are added to any of the files from now on, without end. Survives rotation."""
    return _follow(files, {name: _size(file) for name, file in files.items()}, poll_seconds)


def _follow(files: dict[str, Path], position: dict[str, int], pause: float) -> Iterator[tuple[str, str]]:
    while True:
        quiet = True
        for name, file in files.items():
            if _size(file) < position[name]:
                position[name] = 0
            if _size(file) == position[name]:
                continue
            with file.open("rb") as stream:
                stream.seek(position[name])
                data = stream.read(1_000_000)
            complete = data.rfind(b"\n") + 1
            position[name] += complete
            for line in data[:complete].decode(errors="replace").splitlines():
                quiet = False
                yield name, line
        if quiet:
            time.sleep(pause)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
