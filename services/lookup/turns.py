"""Whose question is read next: a few at a time, a few that wait, and nobody's who has left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from core.contracts.lookup import BUSY
from services.common.errors import busy

AT_ONCE: Final = 2
"""Reads that work at the same time: each may take a core and some hundred megabytes."""
WAITING: Final = 8
"""Questions that may wait: those behind them would be answered when their asker's patience is over."""


class Turns:
    """Order of arrival, bounded."""

    def __init__(self, at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self._free, self._most, self._waiting = asyncio.Semaphore(at_once), waiting, 0

    @asynccontextmanager
    async def one(self, has_left: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """A turn. Raises: Problem 503 (`lookup_busy`), also to an asker that left while it waited."""
        if self._free.locked() and self._waiting >= self._most:
            raise busy("The lookup", BUSY)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            if await has_left():
                raise busy("The lookup", BUSY)
            yield
        finally:
            self._free.release()
