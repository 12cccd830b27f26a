"""Several instances of a service: connections go to them in turns, and past one that is gone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.gateway.client import Client
from tests.servers import free_port


@asynccontextmanager
async def instance(port: int, seen: Counter[int]) -> AsyncIterator[None]:
    """Counts who connects to it."""

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen[port] += 1
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", port):
        yield


async def take(client: Client, count: int) -> None:
    for _ in range(count):
        client.release(await client.take(5.0, fresh=True))
    await asyncio.sleep(0.1)


async def test_instances_take_turns_and_one_that_is_gone_is_passed_over() -> None:
    seen: Counter[int] = Counter()
    one, two = free_port(), free_port()
    client = Client("instances", f"http://127.0.0.1:{one},http://127.0.0.1:{two}")
    client.open()
    async with instance(two, seen):
        async with instance(one, seen):
            await take(client, 10)
            assert seen == {one: 5, two: 5}
        await take(client, 10)
        assert seen == {one: 5, two: 15}
    with pytest.raises(OSError, match="Connect call failed"):
        await client.take(5.0)
    client.close()


def test_each_address_is_checked() -> None:
    with pytest.raises(ValueError, match="ftp://b"):
        Client("instances", "http://a:1,ftp://b:2")
