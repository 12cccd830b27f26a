"""Checks 5 and 6 in small, on everything real: two instances of gateway, ws and agents, one memory.

Clients lose their sockets all the time while one instance of each kind drains; each has the run's text and
its numbers whole in the end, and a message that was sent three times is one run.
"""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.contracts.agents import TERMINAL
from core.database import Database
from core.ids import new_id
from tests.doubles.provider import ProviderDouble
from tests.e2e.belongings import said
from tests.e2e.tenants import Platform, Side, settle
from tests.servers import free_port, start, stop
from tests.services.process import service
from tests.services.ws.client import Client, connect

WORDS = 80
ANSWER = " ".join(f"word{number}" for number in range(WORDS))
RUNS = 6


@dataclass
class Pairs:
    """Addresses of two instances of each kind; the second ones can be drained."""

    gateways: tuple[str, str]
    sockets: tuple[str, str]
    drain: Any
    drained: str
    """Name in `run.started` of the agents service that is drained."""


@pytest.fixture(scope="module")
def pairs(running_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    folder, on = tmp_path_factory.mktemp("pairs"), running_platform
    ports = {name: free_port() for name in ("agents", "ws", "ws2", "gateway")}
    both = f"{on.services['agents']},http://127.0.0.1:{ports['agents']}"
    with ExitStack() as stack:

        def begin(name: str, kind: str, url: str) -> tuple[Any, int]:
            variables = {
                **on.environment, "HEADRACE_AGENTS_URL": url, "HEADRACE_SPOOL_DIR": str(folder / f"spool-{name}"),
                "HEADRACE_USAGE_SPOOL_DIR": str(folder / f"usage-{name}"),
            }  # fmt: skip
            component = service(kind, ports[name], variables)
            process = start(component, _log(folder, name))
            ended: list[bool] = []

            def end() -> None:
                if not ended:
                    ended.append(True)
                    stop(component, process)

            stack.callback(end)
            return end, process.pid

        agents, pid = begin("agents", "agents", both)
        first, _ = begin("ws", "ws", both)
        begin("ws2", "ws", both)
        begin("gateway", "gateway", both.partition(",")[2])

        def drain() -> None:
            """The second agents service and the first ws service, as a deploy does."""
            agents()
            first()
            found.sockets = (address["ws2"], address["ws2"])

        address = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        sockets = (address["ws"], address["ws2"])
        found = Pairs((on.gateway, address["gateway"]), sockets, drain, f"{socket.gethostname()}-{pid}")
        yield found


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


@pytest.fixture(scope="module")
def side(running_platform: Platform, postgres: Any) -> Side:
    async def one() -> Side:
        database = Database(postgres, role="system")
        try:
            return await settle(running_platform, database, "talks")
        finally:
            await database.close()

    return asyncio.run(one())


@dataclass
class Caller:
    http: aiohttp.ClientSession
    side: Side
    gateway: str
    double: ProviderDouble
    agents: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {self.side.key}"}
        async with self.http.request(method, self.gateway + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def made(self, path: str, body: object) -> Any:
        status, document = await self.call("POST", path, body)
        assert status < 300, document
        return document

    async def talk(self, agent: str) -> str:
        return str((await self.made("/api/v1/conversations", {"agent": self.agents[agent]}))["id"])


@pytest.fixture
async def caller(running_platform: Platform, side: Side) -> AsyncIterator[Caller]:
    """With a provider of this test's own."""
    double = ProviderDouble()
    async with double.serve() as provider, aiohttp.ClientSession() as http:
        found = Caller(http, side, running_platform.gateway, double)
        name = f"double-{new_id('x')[-8:]}"
        await found.made("/api/v1/providers", {"name": name, "base_url": f"{provider}/v1", "api_key": "k"})
        # A model's name has no spaces.
        search = json.dumps({"query": said(side.marker)}, separators=(",", ":")).replace(" ", "\\u0020")
        careful = {"tools": ["calculator"], "approval": {"calculator": "always"}}
        for slug, model, more in (
            ("held", f"held={WORDS}", {}),
            ("reader", f"calls=knowledge_search:{search}", {"tools": ["knowledge_search"]}),
            ("careful", 'calls=calculator:{"expression":"40+2"}', careful),
        ):
            agent = {"slug": f"{slug}-{name}", "name": slug, "model": f"{name}/{model}", **more}
            found.agents[slug] = (await found.made("/api/v1/agents", agent))["id"]
        yield found


class Reader:
    """What a client has of one run, over any number of connections."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.place = {"epoch": 0, "seq": 0}
        self.events: list[dict[str, Any]] = []

    @property
    def done(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in TERMINAL

    def take(self, frame: dict[str, Any]) -> None:
        self.events.append(frame["event"])
        self.place = {"epoch": frame["epoch"], "seq": frame["seq"]}

    def text(self) -> str:
        """What the deltas say; a takeover discards what came after the last checkpoint."""
        parts: list[tuple[int, str, str]] = []
        for one in self.events:
            if one["type"] == "run.takeover":
                parts = [part for part in parts if part[0] <= one["data"]["discard_after_seq"]]
            elif one["type"] == "message.delta":
                parts.append((one["seq"], one["data"]["message"], one["data"]["text"]))
        last = parts[-1][1] if parts else ""
        return "".join(text for _, message, text in parts if message == last)

    async def follow(self, http: aiohttp.ClientSession, sockets: tuple[str, str], token: str) -> None:
        """To the end, over both instances in turn; the socket is cut after every 15 events."""
        number = 0
        while not self.done:
            number += 1
            try:
                async with connect(http, sockets[number % 2], token=token) as client:
                    result = await client.subscribe(f"run:{self.run}", self.place)
                    assert result["recovered"] or result["reason"] == "log_unavailable", result
                    taken = 0
                    while not self.done and taken < 15:
                        for frame in client.events(f"run:{self.run}")[taken:]:
                            self.take(frame)
                            taken += 1
                        if not self.done:
                            await client.receive()
            except (ConnectionError, aiohttp.ClientError, AssertionError, TimeoutError) as error:
                if isinstance(error, AssertionError) and "unavailable" not in str(error):
                    raise
                await asyncio.sleep(0.1)

    def check(self) -> None:
        assert [one["seq"] for one in self.events] == list(range(1, len(self.events) + 1))
        assert [one["type"] for one in self.events if one["type"] in TERMINAL] == ["run.completed"]
        completed = [one["data"] for one in self.events if one["type"] == "message.completed"][-1]
        assert completed["sha256"] == hashlib.sha256(self.text().encode()).hexdigest()


async def sent_three_times(caller: Caller, pairs: Pairs, conversation: str, text: str) -> str:
    """The one run of a message that is sent over three sockets with one name."""
    message, runs, duplicates = new_id("m"), set(), []
    for number in range(3):
        async with connect(caller.http, pairs.sockets[number % 2], token=caller.side.key) as client:
            answer = await client.ask(
                "message.send", conversation_id=conversation, client_msg_id=message, text=text
            )
            assert answer["ok"], answer
            runs.add(answer["result"]["run_id"])
            duplicates.append(answer["result"]["duplicate"])
    (run,) = runs
    assert duplicates == [False, True, True]
    return str(run)


async def test_5_and_test_6_texts_are_whole_and_messages_are_one_run(caller: Caller, pairs: Pairs) -> None:
    talks: list[str] = []
    readers: list[Reader] = []
    following: list[asyncio.Task[None]] = []

    async def begin(number: int) -> None:
        talk = await caller.talk("held")
        reader = Reader(await sent_three_times(caller, pairs, talk, f"Question {number}"))
        following.append(asyncio.create_task(reader.follow(caller.http, pairs.sockets, caller.side.key)))
        talks.append(talk)
        readers.append(reader)

    def held() -> bool:
        """Every answer stands still in its middle."""
        return all(reader.text() for reader in readers)

    def on_drained() -> bool:
        """The instance that will be drained has some of them."""
        events = [one for reader in readers for one in reader.events if one["type"] == "run.started"]
        return pairs.drained in {one["data"]["instance"] for one in events}

    await asyncio.gather(*(begin(number) for number in range(RUNS)))
    async with asyncio.timeout(120):
        while not held() or not on_drained():
            if held():
                await begin(len(readers))  # the other instance was quicker each time
            await asyncio.sleep(0.05)
    await asyncio.to_thread(pairs.drain)
    caller.double.released.set()
    async with asyncio.timeout(120):
        await asyncio.gather(*following)
    for reader, talk in zip(readers, talks, strict=True):
        reader.check()
        assert reader.text() == ANSWER
        status, listed = await caller.call("GET", f"/api/v1/conversations/{talk}/runs")
        assert status == 200
        assert [one["id"] for one in listed["data"]] == [reader.run]
    # What the drained instance had was handed over, not waited for.
    assert any(one["type"] == "run.takeover" for reader in readers for one in reader.events)


async def test_a_run_reads_from_memory_and_waits_for_a_person_over_the_socket(
    caller: Caller, pairs: Pairs
) -> None:
    reading = Reader(await sent_three_times(caller, pairs, await caller.talk("reader"), "Which secret?"))
    await reading.follow(caller.http, (pairs.sockets[1],) * 2, caller.side.key)
    reading.check()
    assert caller.side.marker in reading.text()
    assert [one for one in reading.events if one["type"] == "retrieval.degraded"] == []
    run = await sent_three_times(caller, pairs, await caller.talk("careful"), "What is 40 and 2?")
    async with connect(caller.http, pairs.sockets[1], token=caller.side.key) as client:
        await client.subscribe(f"run:{run}", {"epoch": 0, "seq": 0})
        asked = (await _event(client, "approval.requested"))["data"]
        answer = {"run_id": run, "call": asked["call"], "round": asked["round"]}
        refused = await client.ask("approval.resolve", **answer, decision="perhaps")
        assert (refused["ok"], refused["error"]["status"]) == (False, 422)
        decided = await client.ask("approval.resolve", **answer, decision="approve", note="go on")
        assert (decided["ok"], decided["result"]["decision"]) == (True, "approve"), decided
        again = await client.ask("approval.resolve", **answer, decision="approve")
        assert again["result"] == decided["result"]
        other = await client.ask("approval.resolve", **answer, decision="reject")
        assert (other["ok"], other["error"]["code"]) == (False, "approval_resolved")
        completed = await _event(client, "message.completed")
        assert "42" in completed["data"]["text"]


async def _event(client: Client, kind: str) -> dict[str, Any]:
    """The first event of a kind that the client has or gets."""
    while True:
        for frame in client.frames:
            if frame["t"] == "event" and frame["event"]["type"] == kind:
                found: dict[str, Any] = frame["event"]
                return found
        await client.receive()
