"""More questions than the lookup answers in time: the last are refused, and those that nobody waits for are left out."""

import asyncio
import secrets
import socket
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvicorn
from fastapi import FastAPI

from core.contracts.lookup import Event
from core.settings import DatabaseSettings, ObjectSettings
from services.billing.trace.lake import Lake
from services.common import errors
from services.common.auth import Identity
from services.common.errors import Problem
from services.common.principal import HEADER, sign, system
from services.lookup.handlers import Lookup, lakes
from services.lookup.routes import router
from services.lookup.turns import Turns
from tests.servers import free_port

KEY = secrets.token_bytes(32)


def lookup(folder: Path, turns: Turns) -> FastAPI:
    """The routes of the lookup, on a lake where nothing landed."""
    app = FastAPI()
    app.include_router(router)
    errors.install(app)
    app.state.identity = Identity(KEY, None)
    away = DatabaseSettings(
        database_url=f"postgresql://127.0.0.1:{free_port()}/x",
        database_app_password=secrets.token_hex(16),
        database_system_password=secrets.token_hex(16),
    )
    objects = ObjectSettings(objects_url=folder.as_uri())
    app.state.lookup = partial(Lookup, lakes(objects, away), folder, turns)
    return app


async def here() -> bool:
    return False


async def gone() -> bool:
    return True


async def test_behind_those_that_wait_everybody_is_refused_and_may_come_again() -> None:
    turns, done, answered = Turns(at_once=2, waiting=3), asyncio.Event(), list[int]()

    async def ask(number: int) -> None:
        async with turns.one(here):
            await done.wait()
            answered.append(number)

    asked = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Problem) as refused:
        await ask(5)
    assert (refused.value.status, refused.value.code) == (503, "lookup_busy")
    assert int(refused.value.headers["retry-after"]) > 0
    done.set()
    await asyncio.gather(*asked)
    await ask(6)
    assert sorted(answered) == [0, 1, 2, 3, 4, 6]


async def test_what_nobody_waits_for_is_not_read_and_takes_no_turn() -> None:
    turns, done, read = Turns(at_once=1, waiting=2), asyncio.Event(), list[str]()

    async def ask(name: str, *, left: bool) -> None:
        async with turns.one(gone if left else here):
            await done.wait()
            read.append(name)

    first = asyncio.create_task(ask("first", left=False))
    await asyncio.sleep(0)
    left, second = (asyncio.create_task(ask(name, left=name == "left")) for name in ("left", "second"))
    await asyncio.sleep(0)
    left_too = asyncio.create_task(ask("cancelled", left=False))
    await asyncio.sleep(0)
    with pytest.raises(Problem):
        await left_too
    second.cancel()
    await asyncio.sleep(0)
    third = asyncio.create_task(ask("third", left=False))
    done.set()
    await asyncio.gather(first, third)
    with pytest.raises(Problem):
        await left
    assert read == ["first", "third"]


@pytest.mark.parametrize("left", [True, False])
async def test_an_asker_that_left_is_noticed(tmp_path: Path, left: bool) -> None:
    """A connection that ends behind its question: the question is not read."""
    body, answer = msgspec.json.encode(Event("org_a", 1, "crm", "e1")), list[Any]()
    headers = [
        (HEADER.encode(), sign(system("billing"), KEY).encode()),
        (b"content-type", b"application/json"),
    ]
    scope = {
        "type": "http", "method": "POST", "path": "/internal/usage/event", "raw_path": b"/internal/usage/event",
        "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if told:
            return told.pop()
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answer.append(message)

    await lookup(tmp_path, Turns())(scope, receive, send)
    found = msgspec.json.decode(answer[1]["body"])
    assert (answer[0]["status"], found.get("code")) == ((503, "lookup_busy") if left else (200, None))


async def test_billing_says_that_the_lookup_is_busy(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(lookup(tmp_path, Turns(0, 0)), log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(Problem) as refused:
                await Lake(http, f"http://127.0.0.1:{port}", KEY).event("org_a", 1, "crm", "e1")
    finally:
        server.should_exit = True
        await serving
    assert (refused.value.status, refused.value.code) == (503, "lookup_busy")
    assert refused.value.headers["retry-after"] == "5"
