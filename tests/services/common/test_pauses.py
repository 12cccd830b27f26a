"""Heartbeats between events, and an end in order however often the reader is cancelled."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from core.tasks import cancel
from services.common.events.pauses import with_pauses


async def test_pauses_between_entries_are_told_and_nothing_is_lost() -> None:
    gate = asyncio.Event()

    async def entries() -> AsyncGenerator[int, None]:
        yield 1
        await gate.wait()
        yield 2

    seen: list[int | None] = []
    async for one in with_pauses(entries(), 0.01):
        seen.append(one)
        if seen.count(None) == 3:
            gate.set()
    assert [one for one in seen if one] == [1, 2]
    assert seen.count(None) >= 3


async def test_an_error_of_the_entries_is_the_readers() -> None:
    async def entries() -> AsyncGenerator[int, None]:
        yield 1
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        [one async for one in with_pauses(entries(), 1)]


async def test_a_reader_who_is_cancelled_again_while_its_source_ends_closes_it_once() -> None:
    """A source that needs longer to end than `cancel` waits, such as a read of a busy log at a drain."""
    reading, closed = asyncio.Event(), asyncio.Event()

    async def entries() -> AsyncGenerator[int, None]:
        try:
            reading.set()
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0.7)
            closed.set()

    async def read() -> None:
        async with aclosing(with_pauses(entries(), 60)) as found:
            async for _ in found:
                pass

    reader = asyncio.create_task(read())
    await reading.wait()
    await cancel(reader)
    assert reader.cancelled(), reader.exception()
    await closed.wait()
