"""Introspection: only for the platform itself, and a typing error never reaches the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from core.settings import CacheSettings, DatabaseSettings
from services.common.principal import Principal
from services.users import keys
from tests.servers import free_port, running
from tests.services.process import environment, service
from tests.services.users.conftest import Caller, Running, Tenant


async def test_unknown_and_mutilated_keys_are_inactive_without_a_reason(acme: Tenant, owner: Caller) -> None:
    for text in (
        "", "x", acme.key + " ", acme.key[:-1], keys.generate().text, acme.key.upper(),
        _other_secret(acme.key), "é" * 70, "sk_live_" + "0" * 400,
    ):  # fmt: skip
        assert await owner.introspect(text) == {"active": False}, text
    assert (await owner.introspect(acme.key))["active"] is True


async def test_nobody_but_the_platform_may_ask(acme: Tenant, owner: Caller, anybody: Caller) -> None:
    pretended = Principal(tenant_id=acme.id, subject="usr_1", kind="user", platform_owner=True)
    for caller in (anybody, owner, acme.caller, anybody.acting_as(pretended)):
        answer = await caller.post("/internal/introspect", {"key": acme.key})
        assert (answer.status, answer.json["code"]) == (404, "not_found")


async def test_wrong_checksum_never_reaches_the_database(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path: Path
) -> None:
    """The service reaches PostgreSQL through a gate of ours; then the gate is shut."""
    gate = Gate(*_address(postgres))
    async with gate.open() as port, aiohttp.ClientSession() as http:
        users_port = free_port()
        through = postgres.model_copy(update={"database_url": f"postgresql://127.0.0.1:{port}/headrace"})
        variables = environment(tmp_path, through, valkey, users_port=users_port, gateway_port=free_port())
        process = running(service("users", users_port, variables), tmp_path / "log")
        component = await asyncio.to_thread(process.__enter__)
        try:
            caller = Caller(http, Running(component.address, variables, tmp_path / "log"), {})
            right = keys.generate().text
            assert await caller.introspect(right) == {"active": False}
            gate.shut()
            wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
            assert await caller.introspect(wrong) == {"active": False}
            system = caller.acting_as(Principal(tenant_id="", subject="test", kind="system"))
            asked = await system.post("/internal/introspect", {"key": right})
            assert (asked.status, asked.json["code"]) == (503, "unavailable")
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)


class Gate:
    """A TCP relay that can be shut."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._shut = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        self.shut()
        server.close()

    def shut(self) -> None:
        self._shut = True
        for writer in self._writers:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:
            writer.close()
            return
        onward_reader, onward = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, onward}
        await asyncio.gather(_copy(reader, onward), _copy(onward_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _address(settings: DatabaseSettings) -> tuple[str, int]:
    host, _, port = settings.database_url.removeprefix("postgresql://").split("/")[0].partition(":")
    return host, int(port)


def _other_secret(text: str) -> str:
    """A well-formed key with the id of `text` and another secret."""
    other = keys.generate()
    public_id = keys.public_id(text)
    assert public_id is not None
    body = other.text.replace(other.public_id, public_id)[:-6]
    return body + keys.checksum(body)


@pytest.mark.parametrize("body", [{}, {"key": 1}, {"key": "k", "more": 1}, {"key": "k" * 501}])
async def test_bad_bodies(anybody: Caller, body: object) -> None:
    system = anybody.acting_as(Principal(tenant_id="", subject="test", kind="system"))
    assert (await system.post("/internal/introspect", body)).status == 422
