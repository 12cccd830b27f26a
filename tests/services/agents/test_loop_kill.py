"""Check 7: the instance dies by SIGKILL in the middle of a tool's effect; another ends the run."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from core.contracts.usage import parse
from core.database import tenant
from deploy.component import Component
from services.agents import submissions
from services.agents.model import AgentSpec
from services.agents.submissions import Submission
from tests.doubles.provider import ProviderDouble
from tests.servers import kill, start, stop
from tests.services.agents.arena import Arena, Asker, variables
from tests.services.process import REPOSITORY


class Effects:
    """A server that does something once for each key; the first request hears nothing of it."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.done: Counter[str] = Counter()
        self.reached = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body["key"])
        self.done[body["tool"]] += self.requests.count(body["key"]) == 1
        if len(self.requests) == 1:
            self.reached.set()
            await asyncio.sleep(3600)
        return web.Response(text="done")

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/", self.take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        await runner.cleanup()


@contextmanager
def instance(arena: Arena, name: str, provider: str, effects: str) -> Iterator[subprocess.Popen[bytes]]:
    """A runner with the real loop in a process of its own; killed with the block where it still runs."""
    ready = arena.folder / f"{name}.ready"
    keys = {
        "HEADRACE_INTERNAL_KEY": secrets.token_hex(32),
        "HEADRACE_FIELD_KEY": f"1:{secrets.token_hex(32)}",
    }
    component = Component(
        name=name,
        argv=(
            sys.executable,
            "-m",
            "tests.services.agents.loop_process",
            name,
            str(ready),
            provider,
            effects,
        ),
        env={**variables(arena.settings), **keys, "PATH": os.environ.get("PATH", "")},
        cwd=REPOSITORY,
        ready=ready.exists,
        stop_grace=15,
    )
    process = start(component, arena.log(name))
    try:
        yield process
    except BaseException:
        kill(process)
        raise
    stop(component, process)


async def die_in_a_tool(arena: Arena, asker: Asker, tool: str) -> Effects:
    """One run whose first instance is killed while `tool` works; it has ended when this returns."""
    effects, double = Effects(), ProviderDouble()
    async with effects.serve() as effects_url, double.serve() as provider:
        wanted = Submission(
            spec=AgentSpec(model=f"double/calls={tool}", tools=(tool,)),
            text="Do it.",
            agent_id="agt_test",
            agent_version=1,
        )
        with tenant(asker.tenant_id):
            async with asker.app.writer() as connection:
                submitted = await submissions.submit(connection, asker.principal, wanted)
        with instance(arena, "first", provider, effects_url) as first:
            await effects.reached.wait()
            kill(first)
        with instance(arena, "second", provider, effects_url):
            async with asyncio.timeout(60):
                while (await asker.runs())[submitted.run_id].ended_at is None:  # noqa: ASYNC110 - it asks the database
                    await asyncio.sleep(0.05)
        (story,) = (await asker.stories()).values()
        story.check()
        assert len(story.takeovers) == 1
        assert story.types[-1] == "run.completed"
        assert story.text == (await asker.answers())[submitted.run_id]
        metered = Counter(parse(one.encode()).data.meter for one in await asker.usage())
        assert metered["llm.requests"] == 2 == len(double.requests)
        assert len(await asker.usage()) == len({parse(one.encode()).id for one in await asker.usage()})
        assert metered["tool.calls"] == (1 if tool == "effect" else 0)
        assert ("approval.requested" in story.types) is (tool == "danger")
    return effects


async def test_an_idempotent_effect_happens_once(arena: Arena, asker: Asker) -> None:
    effects = await die_in_a_tool(arena, asker, "effect")
    assert effects.done == {"effect": 1}
    assert len(effects.requests) == 2


async def test_an_unsafe_effect_is_asked_about_and_not_repeated(arena: Arena, asker: Asker) -> None:
    effects = await die_in_a_tool(arena, asker, "danger")
    assert effects.done == {"danger": 1}
    assert len(effects.requests) == 1
