"""Agents and memory as far as the lists of the pages see them: items in memory, in pages as the API gives them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from services.common.paging import Page, listing

WHEN: Final = "2026-03-01T12:00:00.000000Z"


@dataclass
class ListsDouble:
    """Lists by their path, newest first, and single things by theirs."""

    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    things: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.Response:
        if request.path in self.things:
            return web.json_response(self.things[request.path])
        query = request.query
        if "limit" not in query:
            raise web.HTTPNotFound
        page = Page(limit=int(query["limit"]), after=query.get("after", ""))
        items = self.lists.get(request.path, [])
        found = [one for one in items if not page.after or one["id"] < page.after]
        return web.json_response(listing(found[: page.fetch], page))

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield
        finally:
            await runner.cleanup()


def conversation(number: int) -> dict[str, Any]:
    return {
        "id": f"conv_{number:03d}",
        "title": f"Talk {number:03d}",
        "agent_id": "agt_1",
        "updated_at": WHEN,
    }


def message(number: int, role: str = "user", run: str | None = None) -> dict[str, Any]:
    said = {"id": f"msg_{number:03d}", "role": role, "text": f"word {number:03d}", "citations": []}
    return {**said, "run_id": run}


def document(number: int, state: str = "indexed") -> dict[str, Any]:
    version = {"reason": "", "size": 1, "chunks": 1}
    name, key = f"file {number:03d}", f"doc_{number:03d}"
    return {"id": key, "name": name, "state": state, "version": version, "created_at": WHEN}


def agent(number: int) -> dict[str, Any]:
    return {"id": f"agt_{number:03d}", "name": f"Agent {number:03d}", "model": "m", "version": 1}


def base(number: int) -> dict[str, Any]:
    return {"id": f"kb_{number:03d}", "name": f"Base {number:03d}"}
