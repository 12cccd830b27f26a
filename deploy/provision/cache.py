"""Folders in the user's cache that are built once, also when two processes want them at the same time."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Report = Callable[[str], None]
"""Takes one line of progress."""

_STAMP = ".complete"


def root() -> Path:
    """`$XDG_CACHE_HOME/headrace`, or `~/.cache/headrace`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "headrace"


def existing(name: str) -> Path | None:
    """The cache folder `name` where it was built to the end."""
    folder = root() / name
    return folder if (folder / _STAMP).exists() else None


def filled(name: str, build: Callable[[Path], None], report: Report) -> Path:
    """The cache folder `name`, built by `build(empty folder)` unless it is there.

    A folder gets its name only when it is whole, so a process killed half-way leaves nothing that
    counts. A second caller waits for the first and uses its result.
    """
    if (folder := existing(name)) is not None:
        return folder
    with locked(name, report):
        if (folder := existing(name)) is not None:
            return folder
        for left_over in root().glob(f"{name}.partial-*"):
            remove(left_over)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=root()))
        build(partial)
        (partial / _STAMP).touch()
        folder = root() / name
        remove(folder)
        partial.rename(folder)
        return folder


@contextmanager
def locked(name: str, report: Report) -> Iterator[None]:
    """One process at a time for `name`; the lock dies with its holder."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f".{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{name}: another process is making it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    """Delete a folder of the cache, read-only parts included."""
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)
