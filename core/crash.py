"""Points at which a drill stops a process as a power cut would: SIGKILL, no exit handler, no flush.

    crash.here(Point.ROLLED_UP)

A process that was started with `HEADRACE_CRASH_AT` set to a point's name dies when it gets there
(`name:3`: the third time). Without it `here` is an empty function: the environment is read once, when this
module is loaded. `headrace drill usage` and `tests/chaos` go through all points; those without a call
are made from outside (two runners, a database restored to an earlier time, a broker killed).
"""

import os
import signal
from enum import StrEnum
from typing import Final

VARIABLE: Final = "HEADRACE_CRASH_AT"


class Point(StrEnum):
    """From the topic to the purge and the invoice, in the order in which a record meets them."""

    BEFORE_READING = "before-reading"
    READING = "reading"
    WRITING_FILES = "writing-files"
    FILES_WRITTEN = "files-written"
    COMMIT_SENT = "commit-sent"
    LANDED = "landed"
    INDEXING = "indexing"
    ROLLED_UP = "rolled-up"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    SNAPSHOT_WRITTEN = "snapshot-written"
    PURGE_INTENDED = "purge-intended"
    PURGED = "purged"
    ADJUSTING = "adjusting"


def _armed() -> tuple[str, int]:
    name, _, times = os.environ.get(VARIABLE, "").partition(":")
    if name and name not in set(Point):
        raise ValueError(f"{VARIABLE}={name!r} names no point; they are {', '.join(Point)}")
    return name, int(times or 1)


NAME, _left = _armed()
"""The point at which this process dies; empty in all but those of a drill."""


def due(point: Point) -> bool:
    """True where this is the time to die; counts how often the point was reached."""
    global _left  # noqa: PLW0603 - a process dies once
    if point != NAME:
        return False
    _left -= 1
    return _left == 0


if NAME:

    def here(point: Point) -> None:
        """Die, where this point is meant."""
        if due(point):
            os.kill(os.getpid(), signal.SIGKILL)

else:

    def here(point: Point) -> None:
        """Nothing."""
