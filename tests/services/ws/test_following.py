"""Clients follow runs over reconnects and gateways, and have every event once."""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.services.ws.client import Assembly, connect
from tests.services.ws.conftest import Instance, World


async def test_a_run_is_followed_live(ws: Instance, world: World) -> None:
    run = world.run()
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        assert client.hello["heartbeat_ms"] == 1000
        result = await client.subscribe(f"run:{run.id}", {"epoch": 0, "seq": 0})
        assert result == {"recovered": True, "replayed": 0, "epoch": 0, "last_seq": 0}
        text = Assembly()
        await world.append(run, run.whole(50))
        while not text.done:
            text.take(await client.until(lambda frame: frame["t"] == "event"))
    assert text.seqs[run.id] == list(range(1, 54))
    assert text.texts[run.id] == run.text


@pytest.mark.parametrize("kind", ["run", "conversation"])
@pytest.mark.parametrize("small", [False, True])
async def test_every_event_once_over_reconnects_and_gateways(
    ws: Instance, ws_small: Instance, launch: Callable[..., Instance], world: World, kind: str, small: bool
) -> None:
    """Cut at random, on to another process each time; one of them is killed in the middle."""
    chance = random.Random(f"{kind}{small}")
    mortal = launch()
    instances = [ws_small] if small else [ws, ws_small, mortal]
    run, text = world.run(), Assembly()
    channel = f"run:{run.id}" if kind == "run" else f"conversation:{run.conversation}"
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as first:
        result = await first.subscribe(channel)
        text.place = {"epoch": result["epoch"], "seq": result["last_seq"]}
    over = asyncio.Event()

    async def write() -> None:
        for step in range(25):
            await world.append(run, run.deltas(40))
            if step == 8 and mortal in instances:
                instances.remove(mortal)
                os.kill(mortal.process.pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        await world.append(run, run.end())
        over.set()

    writing = asyncio.create_task(write())
    while not text.done:
        instance = chance.choice(instances)
        try:
            async with connect(world.http, instance.address, ticket=await world.ticket(instance)) as client:
                await _follow(client, channel, text, chance.randrange(5, 400))
        except (OSError, aiohttp.ServerDisconnectedError):  # killed, maybe while it made out the ticket
            continue
    await writing
    assert text.seqs[run.id] == list(range(1, run.seq + 1))
    assert text.texts[run.id] == run.text


async def _follow(client: Any, channel: str, text: Assembly, count: int) -> None:
    await client.socket.send_json(
        {"t": "req", "id": 1, "method": "subscribe", "params": {"ch": channel, "after": text.place}}
    )
    while count and not text.done:
        frame = await client.receive()
        if frame["t"] == "event":
            text.take(frame)
            count -= 1
        elif frame["t"] == "res":
            assert frame["ok"], frame
            assert frame["result"]["recovered"], frame
        elif frame["t"] == "resync":
            return


async def test_a_user_follows_all_conversations_and_resumes_by_cursor(
    ws: Instance, ws_small: Instance, world: World
) -> None:
    channel = f"user:{world.principal.subject}"
    runs = [world.run() for _ in range(4)]
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        await client.subscribe(channel)
        await world.append(runs[0], runs[0].whole(5))
        kinds = [(await client.until(lambda f: f["t"] == "event")) for _ in range(3)]
        assert [frame["event"]["type"] for frame in kinds] == [
            "run.started", "message.completed", "run.completed",
        ]  # fmt: skip
        cursor = kinds[1]["cursor"]
    for run in runs[1:]:
        await world.append(run, run.whole(300))
    for instance in (ws_small, ws):
        async with connect(world.http, instance.address, ticket=await world.ticket(instance)) as client:
            seen: list[tuple[str, str]] = []
            await client.socket.send_json(
                {
                    "t": "req",
                    "id": 1,
                    "method": "subscribe",
                    "params": {"ch": channel, "after": {"cursor": cursor}},
                }
            )
            while len(seen) < 10:
                frame = await client.receive()
                if frame["t"] == "event":
                    seen.append((frame["event"]["subject"], frame["event"]["type"]))
                else:
                    assert frame["t"] != "res" or frame["result"]["recovered"], frame
            assert len(set(seen)) == 10
            assert seen.count((runs[0].id, "run.completed")) == 1


async def test_many_sockets_share_a_run(ws: Instance, world: World) -> None:
    run = world.run()
    texts = [Assembly() for _ in range(20)]

    async def follow(text: Assembly) -> None:
        async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
            text.place = {"epoch": 0, "seq": 0}
            await _follow(client, f"run:{run.id}", text, -1)

    async with asyncio.TaskGroup() as tasks:
        for text in texts:
            tasks.create_task(follow(text))
        for _ in range(10):
            await world.append(run, run.deltas(20))
        await world.append(run, run.end())
    assert all(text.seqs[run.id] == list(range(1, 203)) for text in texts)
