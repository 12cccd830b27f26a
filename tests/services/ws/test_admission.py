"""Who gets in, what they may follow, and how a connection ends."""

import asyncio
import os
import signal
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
from msgspec import structs

from core.cache import open_cache
from core.ids import new_id
from core.settings import CacheSettings
from services.common.limits import Limiter
from services.common.principal import HEADER, Principal, sign
from services.common.revocations import Revoked, publish
from services.common.token_window import TokenWindow
from tests.services.ws.client import Client, connect
from tests.services.ws.conftest import ORIGIN, Instance, World


def stranger() -> Principal:
    return Principal(
        tenant_id=new_id("org"), subject=new_id("usr"), kind="user", scopes=frozenset({"agents:read"})
    )


async def refused(world: World, instance: Instance, query: str, **headers: str) -> int:
    """Status with which an upgrade is refused."""
    url = f"{instance.address.replace('http', 'ws', 1)}/ws/v1{query}"
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await world.http.ws_connect(url, headers=headers)
    return error.value.status


async def test_a_ticket_opens_one_connection(ws: Instance, world: World) -> None:
    ticket = await world.ticket(ws)
    async with connect(world.http, ws.address, ticket=ticket):
        async with world.http.ws_connect(f"{ws.address}/ws/v1?ticket={ticket}") as again:
            assert (await Client(again).closed())[0] == 4001
        async with world.http.ws_connect(f"{ws.address}/ws/v1?ticket=wst_made_up") as made_up:
            assert (await Client(made_up).closed())[0] == 4001


async def test_what_is_no_upgrade_of_ours_is_refused(ws: Instance, world: World) -> None:
    ticket = await world.ticket(ws)
    assert await refused(world, ws, f"?ticket={ticket}", origin="https://evil.example.org") == 403
    assert await refused(world, ws, f"?ticket={ticket}", origin=f"{ORIGIN}.evil.org") == 403
    assert await refused(world, ws, f"?ticket={ticket}", origin="null") == 403
    assert await refused(world, ws, "") == 401
    assert await refused(world, ws, f"?ticket={ticket}&ticket={ticket}") == 401
    assert await refused(world, ws, "/more") == 404
    assert await refused(world, ws, f"?ticket={ticket}", **{"sec-websocket-protocol": "other"}) == 400
    async with connect(world.http, ws.address, ticket=ticket, origin=ORIGIN) as client:
        assert client.socket.protocol == "agent.v1"


async def test_firefox_is_let_in(ws: Instance, world: World) -> None:
    async with connect(
        world.http, ws.address, ticket=await world.ticket(ws), connection="keep-alive, Upgrade"
    ) as client:
        assert client.hello["t"] == "hello"


async def test_a_foreign_run_looks_as_if_it_were_not_there(ws: Instance, world: World) -> None:
    run = world.run()
    async with connect(world.http, ws.address, ticket=await world.ticket(ws, stranger())) as client:
        unknown = await client.ask("subscribe", ch=f"run:{new_id('run')}")
        for channel in (
            f"run:{run.id}", f"conversation:{run.conversation}", f"user:{world.principal.subject}", "run:../x",
        ):  # fmt: skip
            answer = await client.ask("subscribe", ch=channel)
            assert not answer["ok"]
            assert answer["error"]["code"] == unknown["error"]["code"] == "not_found"
        sent = await client.ask("message.send", conversation_id=run.conversation, client_msg_id="1", text="x")
        assert (sent["ok"], sent["error"]["status"]) == (False, 404)
        await world.append(run, run.whole(3))
        assert (await client.ask("unsubscribe", ch=f"run:{run.id}"))["result"] == {"unsubscribed": False}
        assert not client.events(f"run:{run.id}")


async def test_a_colleagues_conversation_is_not_there_except_for_who_may_see_all(
    ws: Instance, world: World
) -> None:
    run, keys = world.run(), world.run()
    world.agents.runs[keys.id]["user"] = new_id("key")
    colleague = structs.replace(world.principal, subject=new_id("usr"))
    cases = (
        (colleague, [False, False, False]),
        (structs.replace(colleague, scopes=colleague.scopes | {"org:admin"}), [True, True, True]),
        (structs.replace(colleague, subject=new_id("key"), kind="api_key"), [False, False, True]),
        (world.principal, [True, True, False]),
    )
    for principal, wanted in cases:
        async with connect(world.http, ws.address, ticket=await world.ticket(ws, principal)) as client:
            channels = (f"run:{run.id}", f"conversation:{run.conversation}", f"run:{keys.id}")
            answers = [await client.ask("subscribe", ch=channel) for channel in channels]
            assert [answer["ok"] for answer in answers] == wanted, principal
            assert {answer["error"]["code"] for answer in answers if not answer["ok"]} <= {"not_found"}


async def test_a_repeated_send_is_one_run(ws: Instance, world: World) -> None:
    run, answers = world.run(), []
    for _ in range(3):
        async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
            answers.append(
                await client.ask(
                    "message.send", conversation_id=run.conversation, client_msg_id="m-1", text="hello"
                )
            )
    results = [answer["result"] for answer in answers]
    assert len({result["run_id"] for result in results}) == 1
    assert [result["duplicate"] for result in results] == [False, True, True]
    assert all(result["accepted"] for result in results)
    assert world.principal in world.agents.acting
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        assert (await client.ask("run.cancel", run_id=run.id))["ok"]
    assert world.agents.cancelled == [run.id]


async def test_orders_count_among_the_requests_of_the_organisation(
    ws: Instance, world: World, valkey: CacheSettings
) -> None:
    """In the window of the gateway, which counted one already."""
    cache, run = open_cache(valkey), world.run()
    limited = structs.replace(world.principal, requests_per_minute=3)
    assert (await Limiter(cache).take(f"tenant:{limited.tenant_id}", 3)).allowed
    await cache.aclose()
    sent = {"conversation_id": run.conversation, "client_msg_id": "m-1", "text": "hello"}
    async with connect(world.http, ws.address, ticket=await world.ticket(ws, limited)) as client:
        assert (await client.ask("message.send", **sent))["ok"]
        assert (await client.ask("run.cancel", run_id=run.id))["ok"]
        for refused in (
            await client.ask("message.send", **sent),
            await client.ask("run.cancel", run_id=run.id),
            await client.ask("approval.resolve", run_id=run.id, call="call_1", decision="approve"),
        ):
            assert (refused["error"]["status"], refused["error"]["code"]) == (429, "rate_limited")
            assert 1 <= refused["error"]["retry_after"] <= 61
        assert (await client.ask("unsubscribe", ch="run:x"))["ok"]
    assert world.agents.cancelled == [run.id]


async def test_a_message_needs_a_token_of_the_minute(
    ws: Instance, world: World, valkey: CacheSettings
) -> None:
    run = world.run()
    limited = structs.replace(world.principal, tenant_id=run.tenant, requests_per_minute=10)
    sent = {"conversation_id": run.conversation, "client_msg_id": "m-1", "text": "hello"}
    async with connect(world.http, ws.address, ticket=await world.ticket(ws, limited)) as client:
        assert (await client.ask("message.send", **sent))["ok"]
        async with open_cache(valkey) as cache:
            await TokenWindow(cache).settle(f"tenant:{limited.tenant_id}", 2000)
        # What this instance has leased before, it may still give.
        answers = [await client.ask("message.send", **sent) for _ in range(5)]
        refused = answers[-1]["error"]
        assert (refused["status"], refused["code"]) == (429, "tokens_limited")
        assert 1 <= refused["retry_after"] <= 61
        assert (await client.ask("run.cancel", run_id=run.id))["ok"]


async def test_frames_that_are_wrong_or_too_big(ws: Instance, world: World) -> None:
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        for text in ("{", '{"t":"req","t":"req"}', '{"t":"other"}', '{"t":"req","id":1,"method":"x"}', "[]"):
            await client.socket.send_str(text)
            answer = await client.until(lambda frame: frame["t"] in {"error", "res"})
            assert answer["error"]["status"] in {400, 422}
        await client.socket.send_str(" " * 70_000)
        assert (await client.closed())[0] == 4013
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        await client.socket.send_bytes(b"{}")
        assert (await client.closed())[0] == 1003


async def test_who_asks_without_end_is_closed(ws: Instance, world: World) -> None:
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        for number in range(400):
            await client.socket.send_json(
                {"t": "req", "id": number, "method": "unsubscribe", "params": {"ch": "x"}}
            )
        assert (await client.closed())[0] == 4029
        assert any(frame.get("error", {}).get("status") == 429 for frame in client.frames)


async def test_a_revoked_caller_is_closed_and_others_stay(
    ws: Instance, world: World, valkey: CacheSettings
) -> None:
    other = stranger()
    cache = open_cache(valkey)
    async with (
        connect(world.http, ws.address, ticket=await world.ticket(ws)) as client,
        connect(world.http, ws.address, ticket=await world.ticket(ws, other)) as untouched,
    ):
        unused = await world.ticket(ws)
        await publish(cache, Revoked("person.changed", subject=world.principal.subject))
        assert (await client.closed())[0] == 4001
        async with world.http.ws_connect(f"{ws.address}/ws/v1?ticket={unused}") as late:
            assert (await Client(late).closed())[0] == 4001
        assert (await untouched.ask("unsubscribe", ch="run:x"))["ok"]
    await cache.aclose()


async def test_a_ticket_renews_a_connection_of_its_own_caller_only(ws: Instance, world: World) -> None:
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        answer = await client.ask("token.refresh", ticket=await world.ticket(ws))
        assert answer["result"]["expires_in_ms"] > 800_000
        foreign = await client.ask("token.refresh", ticket=await world.ticket(ws, stranger()))
        assert foreign["error"]["status"] == 401


async def test_without_the_scope_there_is_no_ticket(ws: Instance, world: World, key: bytes) -> None:
    headers = {HEADER: sign(msgspec.structs.replace(world.principal, scopes=frozenset()), key)}
    async with world.http.post(f"{ws.address}/api/v1/ws/tickets", headers=headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "missing_scope")


async def test_a_reader_that_takes_nothing_is_closed(ws: Instance, world: World) -> None:
    run, before = world.run(), await _slow(world, ws)
    host, port = ws.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    ticket = await world.ticket(ws)
    writer.write(
        f"GET /ws/v1?ticket={ticket} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
    )
    await reader.readuntil(b"hello")
    text = b'{"t":"req","id":1,"method":"subscribe","params":{"ch":"run:%b"}}' % run.id.encode() + b" " * 126
    writer.write(bytes((0x81, 0x80 | 126)) + len(text).to_bytes(2) + bytes(4) + text)
    await reader.readuntil(b'"recovered":true')
    # From here on nothing is read: the stream reader stops at its limit.
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        await client.subscribe(f"run:{run.id}", {"epoch": 0, "seq": 0})
        # The other reads all the while, or it would be slow itself.
        for step in range(1, 21):
            big = [run.event("tool_result", content="x" * 20_000) for _ in range(20)]
            await world.append(run, big)
            await client.until(lambda frame, last=20 * step: frame.get("seq") == last)  # type: ignore[misc]
    async with asyncio.timeout(30):
        while await _slow(world, ws) == before:  # noqa: ASYNC110 - metrics are asked for
            await asyncio.sleep(0.1)
    assert await _slow(world, ws) == before + 1
    writer.transport.abort()


async def _slow(world: World, instance: Instance) -> float:
    """Readers that were closed because they were too slow."""
    lines = (await _metrics(world, instance)).splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("ws_slow_total ")), 0.0)


async def _metrics(world: World, instance: Instance) -> str:
    async with world.http.get(f"{instance.address}/metrics") as answer:
        return await answer.text()


async def test_a_silent_client_is_asked(ws: Instance, world: World) -> None:
    async with connect(world.http, ws.address, ticket=await world.ticket(ws)) as client:
        await client.until(lambda frame: frame["t"] == "ping")
        await client.socket.send_json({"t": "ping"})
        await client.until(lambda frame: frame["t"] == "pong")


async def test_a_client_without_a_sign_of_life_is_closed(ws: Instance, world: World) -> None:
    """It answers neither the frame nor the ping of the protocol."""
    url = f"{ws.address}/ws/v1?ticket={await world.ticket(ws)}"
    async with world.http.ws_connect(url, autoping=False) as socket, asyncio.timeout(60):
        while (await socket.receive()).type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.PING}:
            pass
        assert socket.close_code == 4008


async def test_drain_sends_everybody_away_with_a_hint(launch: Callable[..., Instance], world: World) -> None:
    instance = launch()
    reasons = []
    run = world.run()

    async def stay(ready: asyncio.Event) -> None:
        url = f"{instance.address}/ws/v1?ticket={await world.ticket(instance)}"
        async with world.http.ws_connect(url) as socket:
            await socket.send_json(
                {"t": "req", "id": 1, "method": "subscribe", "params": {"ch": f"run:{run.id}"}}
            )
            while (await socket.receive_json())["t"] != "res":  # hello, and pings where it takes long
                pass
            ready.set()
            while (message := await socket.receive()).type == aiohttp.WSMsgType.TEXT:
                pass
            reasons.append((socket.close_code, message.extra))

    async with asyncio.TaskGroup() as tasks:
        events = [asyncio.Event() for _ in range(5)]
        for event in events:
            tasks.create_task(stay(event))
        await asyncio.gather(*(event.wait() for event in events))
        os.kill(instance.process.pid, signal.SIGTERM)
    assert [code for code, _ in reasons] == [1012] * 5
    hints = {msgspec.json.decode(str(reason))["reconnect_ms"] for _, reason in reasons}
    assert len(hints) > 1
    assert await asyncio.to_thread(instance.process.wait, 15) == 0


async def test_health_and_metrics_share_the_port(ws: Instance, world: World) -> None:
    async with world.http.get(f"{ws.address}/readyz") as answer:
        assert answer.status == 200
    assert "ws_sockets" in await _metrics(world, ws)
