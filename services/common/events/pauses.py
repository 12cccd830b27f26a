"""A stream of events that also tells when nothing came for a while."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

T = TypeVar("T")
_ENDING: Final = set[asyncio.Task[None]]()


async def with_pauses(entries: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T | None, None]:
    """`entries`, which are closed at the end, and None where none came for `seconds`. Raises: as they do."""
    coming: asyncio.Task[T | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(entries))
            await asyncio.wait({coming}, timeout=seconds)
            if not coming.done():
                yield None
                continue
            entry, coming = coming.result(), None
            if entry is None:
                return
            yield entry
    finally:
        # In a task of its own: whoever is cancelled again while the source ends would close a generator that
        # is still running, which is an error (and leaves it open).
        ending = asyncio.create_task(_end(entries, coming))
        _ENDING.add(ending)
        ending.add_done_callback(_ENDING.discard)
        await asyncio.shield(ending)


async def _next(entries: AsyncGenerator[T, None]) -> T | None:
    return await anext(entries, None)


async def _end(entries: AsyncGenerator[Any, None], coming: asyncio.Task[Any] | None) -> None:
    if coming is not None:
        coming.cancel()
        await asyncio.wait({coming})
    await entries.aclose()
