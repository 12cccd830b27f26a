"""Pieces of an answer at a steady pace, as a model's tokens come."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

_T = TypeVar("_T")


async def paced(items: Iterable[_T], seconds: float) -> AsyncIterator[_T]:
    """Each item `seconds` after the one before, without drifting."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for item in items:
        await asyncio.sleep(max(0.0, due - loop.time()))
        yield item
        due += seconds
