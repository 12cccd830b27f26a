"""Calls of the agents service go to another instance where one dies under them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from msgspec import structs

from core.ids import new_id
from services.common.errors import Problem
from services.common.principal import Principal, system
from services.ws.access import Access
from services.ws.agents import Agents
from tests.servers import free_port
from tests.services.ws.agents_double import AgentsDouble

KEY = b"k" * 32
PERSON = Principal(
    tenant_id=new_id("org"), subject=new_id("usr"), kind="user", scopes=frozenset({"agents:run"})
)


@asynccontextmanager
async def dying() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An instance that takes a request whole and ends without a word; its address, and what it took."""
    taken: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken


async def test_a_call_that_breaks_off_is_made_at_the_next_instance(http: aiohttp.ClientSession) -> None:
    double, port = AgentsDouble(KEY), free_port()
    owner = {"tenant": PERSON.tenant_id, "user": PERSON.subject, "conversation": "c1", "first": None}
    double.runs["r1"], double.conversations["c1"] = owner, owner
    async with dying() as (broken, taken), double.serving(port):
        both = f"{broken},http://127.0.0.1:{port}"
        agents, message = Agents(http, both, KEY), {"text": "x", "client_msg_id": "m1"}
        for number in range(2):  # in turns: one of the two begins with the dying instance
            found = await agents.owner("run", "r1")
            assert found is not None
            assert found.tenant == PERSON.tenant_id
            assert (await agents.send(PERSON, "c1", message))["duplicate"] == bool(number)
            assert await agents.cancel(PERSON, "r1") == {"status": "cancelling"}
        assert len(taken) >= 3
    assert [caller.kind for caller in double.acting] == [system("ws").kind, "user", "user"] * 2


async def test_all_instances_are_asked_in_turns(http: aiohttp.ClientSession) -> None:
    doubles = [AgentsDouble(KEY), AgentsDouble(KEY)]
    ports = [free_port(), free_port()]
    async with doubles[0].serving(ports[0]), doubles[1].serving(ports[1]):
        agents = Agents(http, ",".join(f"http://127.0.0.1:{port}" for port in ports), KEY)
        for _ in range(6):
            assert await agents.owner("run", "none") is None
    assert [len(double.acting) for double in doubles] == [3, 3]


async def test_who_owns_a_run_is_asked_once_for_all_even_if_they_leave(http: aiohttp.ClientSession) -> None:
    double, port = AgentsDouble(KEY, delay=0.3), free_port()
    double.runs["r1"] = {
        "tenant": PERSON.tenant_id,
        "user": PERSON.subject,
        "conversation": "c1",
        "first": None,
    }
    person = structs.replace(PERSON, scopes=frozenset({"agents:read"}))
    async with double.serving(port):
        access = Access(Agents(http, f"http://127.0.0.1:{port}", KEY))
        for _ in range(5):  # each leaves before the answer
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await access.check(person, "run", "r1")
        owners = await asyncio.gather(*(access.check(person, "run", "r1") for _ in range(20)))
        assert {owner.user for owner in owners} == {PERSON.subject}
        # Those who left asked once; those who came to a question under way ask once more, all together.
        assert len(double.acting) == 2
        with pytest.raises(Problem) as problem:
            await access.check(person, "run", "r2")
        assert problem.value.status == 404


async def test_where_all_die_the_caller_hears_of_it(http: aiohttp.ClientSession) -> None:
    async with dying() as (broken, taken):
        with pytest.raises(Problem) as problem:
            await Agents(http, f"{broken},http://127.0.0.1:{free_port()}", KEY).owner("run", "r1")
    assert problem.value.status == 503
    assert taken
