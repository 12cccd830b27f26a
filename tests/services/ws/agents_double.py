"""The agents service as far as the WebSocket gateway sees it: owners, sends and cancels, in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from core.ids import new_id
from services.common.principal import HEADER, Principal, verify


@dataclass
class AgentsDouble:
    """What it knows; `first` is where a run's events begin."""

    key: bytes
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: dict[tuple[str, str], str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    acting: list[Principal] = field(default_factory=list)
    delay: float = 0.0
    """Seconds until it says whose something is."""

    def _caller(self, request: web.Request) -> Principal:
        caller = verify(request.headers[HEADER], self.key)
        self.acting.append(caller)
        return caller

    async def owner(self, request: web.Request) -> web.Response:
        assert self._caller(request).kind == "system"
        await asyncio.sleep(self.delay)
        known = self.runs if request.match_info["kind"] == "runs" else self.conversations
        found = known.get(request.match_info["id"])
        return web.json_response(found, status=200) if found else web.json_response({}, status=404)

    async def message(self, request: web.Request) -> web.Response:
        caller, body = self._caller(request), await request.json()
        conversation = request.match_info["id"]
        found = self.conversations.get(conversation)
        if found is None or found["tenant"] != caller.tenant_id:
            return web.json_response({"code": "not_found", "title": "Not found"}, status=404)
        key = (conversation, body["client_msg_id"])
        duplicate = key in self.sent
        run = self.sent.setdefault(key, new_id("run"))
        answer = {"run": run, "message": f"msg_of_{run}", "duplicate": duplicate}
        return web.json_response(answer, status=202)

    async def cancel(self, request: web.Request) -> web.Response:
        self._caller(request)
        self.cancelled.append(request.match_info["id"])
        return web.json_response({"status": "cancelling"}, status=202)

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/internal/{kind:runs|conversations}/{id}", self.owner)
        app.router.add_post("/api/v1/conversations/{id}/messages", self.message)
        app.router.add_post("/api/v1/runs/{id}/cancel", self.cancel)
        app.router.add_get("/healthz", _alive)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield
        finally:
            await runner.cleanup()


async def _alive(_: web.Request) -> web.Response:
    return web.Response()
