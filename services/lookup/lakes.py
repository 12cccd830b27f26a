"""Lakes that stay open between questions: to open a table reads its log, to bring it forward is one look."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

KEPT_SECONDS: Final = 600.0
"""A table that was put back to an earlier state is noticed when its lake goes, at the latest."""

T = TypeVar("T")


class Lakes(Generic[T]):
    """As many of each generation as there were questions at once. To be used on the event loop.

    Args:
        make: opens the lake of a generation, without reading anything.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._idle: dict[int, list[tuple[float, T]]] = defaultdict(list)  # seconds

    @contextmanager
    def one(self, generation: int) -> Iterator[T]:
        """A lake for one question. Where that fails or is given up, which may leave a thread at work with the
        lake, nobody gets it again."""
        since, lake = self._take(generation)
        yield lake
        self._idle[generation].append((since, lake))

    def _take(self, generation: int) -> tuple[float, T]:  # seconds
        idle = self._idle[generation]
        while idle:
            since, lake = idle.pop()
            if time.monotonic() - since < KEPT_SECONDS:
                return since, lake
        return time.monotonic(), self._make(generation)
