"""Agents services with the scripted loop on servers of their own, with a relay; and callers of them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from core.settings import DatabaseSettings
from deploy.component import Component
from services.common.principal import HEADER, Principal, sign, system
from tests.services.process import service

SCOPES = frozenset({"agents:read", "agents:write", "agents:run"})


@dataclass(frozen=True)
class Platform:
    addresses: tuple[str, ...]
    """Of the two instances."""
    settings: DatabaseSettings
    environment: dict[str, str]

    def header(self, principal: Principal) -> dict[str, str]:
        """What the gateway would send for this caller."""
        return {HEADER: sign(principal, bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"]))}


def agents_service(port: int, variables: Mapping[str, str]) -> Component:
    """The process of one instance."""
    usual = service("agents", port, variables)
    return replace(usual, argv=(sys.executable, "-W", "error", "-m", "tests.services.agents.service_process"))


@dataclass(frozen=True)
class Reply:
    status: int
    json: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Sse:
    """A server-sent event."""

    id: int
    event: str
    data: str


class Caller:
    """Calls an instance as one principal."""

    def __init__(
        self, http: aiohttp.ClientSession, platform: Platform, principal: Principal, at: int = 0
    ) -> None:
        self.http, self.platform, self.principal, self.instance = http, platform, principal, at

    def at(self, instance: int) -> "Caller":
        return Caller(self.http, self.platform, self.principal, instance)

    def acting_as(self, principal: Principal) -> "Caller":
        return Caller(self.http, self.platform, principal, self.instance)

    def as_system(self) -> "Caller":
        return self.acting_as(system("test"))

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(
            method,
            self.platform.addresses[self.instance] + path,
            json=body,
            headers={**self.platform.header(self.principal), **sent},
        ) as answer:
            text = await answer.read()
            return Reply(
                answer.status, await answer.json(content_type=None) if text else None, answer.headers
            )

    async def get(self, path: str) -> Any:
        """The document of a 200."""
        answer = await self.call("GET", path)
        assert answer.status == 200, answer.json
        return answer.json

    async def post(self, path: str, body: object, status: int = 201, **headers: str) -> Any:
        """The document of a success."""
        answer = await self.call("POST", path, body, **headers)
        assert answer.status == status, answer.json
        return answer.json

    async def agent(self, slug: str = "helper", **more: object) -> Any:
        return await self.post(
            "/api/v1/agents", {"slug": slug, "name": "Helper", "model": "test/scripted", **more}
        )

    async def ended(self, run: str) -> Any:
        """The run once it has ended."""
        async with asyncio.timeout(60):
            while (found := await self.get(f"/api/v1/runs/{run}"))["ended_at"] is None:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        return found

    async def events(self, path: str, most: int = 100_000, **headers: str) -> list[Sse]:
        """Events of a stream until it ends, or the first `most`; then the client vanishes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.platform.addresses[self.instance] + path
        found: list[Sse] = []
        async with self.http.get(url, headers={**self.platform.header(self.principal), **sent}) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for one in sse(answer.content):
                found.append(one)
                if len(found) == most:
                    break
        return found


async def sse(content: aiohttp.StreamReader) -> AsyncIterator[Sse]:
    """The events of a stream until it ends."""
    fields: dict[str, str] = {}
    async for line in content:
        text = line.decode().rstrip("\n")
        if text.startswith(":"):
            continue
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Sse(int(fields["id"]), fields["event"], fields["data"])
            fields = {}
        else:
            fields = {}
