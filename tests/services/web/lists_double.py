"""Agents and memory as far as the lists of the pages see them: items in memory, in pages as the API gives them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
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

    @contextmanager
    def beside(self, port: int) -> Iterator[None]:
        """Served by a thread, for tests that have no event loop."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        serving = self.serving(port)
        try:
            asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result()
            yield
            asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

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
    version = {"reason": "", "size": 1, "chunks": 1, "next_attempt_at": None}
    name, key = f"file {number:03d}", f"doc_{number:03d}"
    return {"id": key, "name": name, "state": state, "version": version, "created_at": WHEN}


def source(text: str) -> ListsDouble:
    """A knowledge base with one document, which has this text."""
    one, version = (
        document(1),
        {"version": 1, "state": "indexed", "media_type": "text/plain", "size": len(text)},
    )
    told = {**version, "pages": 1, "characters": len(text), "chunks": 1, "stage_at": WHEN}
    path = f"/api/v1/documents/{one['id']}"
    return ListsDouble(
        {"/api/v1/knowledge-bases": [base(1)], "/api/v1/knowledge-bases/kb_001/documents": [one]},
        {
            path: {**one, "knowledge_base": "kb_001", "live_version": 1},
            f"{path}/versions": {"data": [told]},
            f"{path}/versions/1/text": {"text": text},
        },
    )


def agent(number: int) -> dict[str, Any]:
    return {"id": f"agt_{number:03d}", "name": f"Agent {number:03d}", "model": "m", "version": 1}


def base(number: int) -> dict[str, Any]:
    return {"id": f"kb_{number:03d}", "name": f"Base {number:03d}"}
