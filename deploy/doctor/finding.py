"""The answer of one check."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


def few(texts: Sequence[str], most: int, *, joint: str = ", ", last: str = " and ") -> str:
    """The first of them, and how many more there are."""
    more = f"{last}{len(texts) - most} more" if len(texts) > most else ""
    return joint.join(texts[:most]) + more


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Works, but will hurt."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    detail: str
    mend: str = ""
    """What to do; empty where nothing is wrong."""
