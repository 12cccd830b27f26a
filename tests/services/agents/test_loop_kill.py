"""Check 7: the instance dies by SIGKILL in the middle of a tool's effect; another ends the run."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from aiohttp import web

from core.contracts.run_events import Decision
from core.contracts.usage import parse
from core.database import tenant
from deploy.component import Component
from services.agents import submissions
from services.agents.decisions import Approval
from services.agents.model import AgentSpec, Limits
from services.agents.submissions import Submission
from services.common.errors import Problem
from tests.doubles.provider import REASONING, ProviderDouble
from tests.servers import kill, start, stop
from tests.services.agents.arena import Arena, Asker, Story, variables
from tests.services.process import REPOSITORY


class Effects:
    """A server that does something once for each key; one request, the first, hears nothing of it."""

    def __init__(self, *, unheard: int = 1) -> None:
        self.unheard = unheard
        self.requests: list[str] = []
        self.done: Counter[str] = Counter()
        self.reached = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body["key"])
        self.done[body["tool"]] += self.requests.count(body["key"]) == 1
        if len(self.requests) == self.unheard:
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
def instance(
    arena: Arena, name: str, provider: str, effects: str, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
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
        env={**variables(arena.settings), **keys, "PATH": os.environ.get("PATH", ""), **more},
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


async def submit(asker: Asker, spec: AgentSpec) -> str:
    wanted = Submission(spec=spec, text="Do it.", agent_id="agt_test", agent_version=1)
    with tenant(asker.tenant_id):
        async with asker.app.writer() as connection:
            return (await submissions.submit(connection, asker.principal, wanted)).run_id


async def question(asker: Asker, run: str) -> Approval:
    """What the run asks, once it waits for a person."""
    while (found := await asker.waits(run)) is None:  # noqa: ASYNC110 - it asks the database
        await asyncio.sleep(0.05)
    return found


async def end(asker: Asker, run: str) -> None:
    while (await asker.runs())[run].ended_at is None:  # noqa: ASYNC110 - it asks the database
        await asyncio.sleep(0.05)


async def check(asker: Asker, run: str, double: ProviderDouble, *, takeovers: int) -> Story:
    """One answer, one terminal event, and each call of model and tool metered once."""
    story = (await asker.stories())[run]
    story.check()
    assert len(story.takeovers) == takeovers
    assert story.types[-1] == "run.completed"
    assert story.text == (await asker.answers())[run]
    records = [parse(one.encode()) for one in await asker.usage()]
    metered = Counter(one.data.meter for one in records)
    assert metered["llm.requests"] == 2 == len(double.requests)
    assert metered["tool.calls"] == 1
    assert len(records) == len({one.id for one in records})
    return story


async def test_7_an_idempotent_effect_happens_once(arena: Arena, asker: Asker) -> None:
    effects, double = Effects(), ProviderDouble()
    async with effects.serve() as url, double.serve() as provider:
        run = await submit(asker, AgentSpec(model="double/calls=effect", tools=("effect",)))
        with instance(arena, "first", provider, url) as first:
            await effects.reached.wait()
            with instance(arena, "second", provider, url):
                kill(first)
                async with asyncio.timeout(15):  # what the platform promises
                    await end(asker, run)
    story = await check(asker, run, double, takeovers=1)
    assert "approval.requested" not in story.types
    assert effects.done == {"effect": 1}
    assert len(effects.requests) == 2


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_7_an_unsafe_effect_becomes_an_approval(arena: Arena, asker: Asker, decision: Decision) -> None:
    effects, double = Effects(), ProviderDouble()
    async with effects.serve() as url, double.serve() as provider:
        spec = AgentSpec(model="double/calls=danger", tools=("danger",), limits=Limits(seconds=60))
        run = await submit(asker, spec)
        with instance(arena, "first", provider, url) as first:
            before = await question(asker, run)
            assert (before.reason, before.round, effects.requests) == ("unsafe", 1, [])
            await asker.decide(before, "approve")
            await effects.reached.wait()
            with instance(arena, "second", provider, url):
                kill(first)
                async with asyncio.timeout(15):  # what the platform promises
                    after = await question(asker, run)
                assert (after.reason, after.round, after.call) == ("interrupted", 2, before.call)
                row = (await asker.runs())[run]
                assert (row.owner, row.lease_until) == ("", None)
                # The answer to the first question, sent again, is none to the second.
                with pytest.raises(Problem, match="approval_asked_again"):
                    await asker.decide(before, "approve")
                assert await asker.waits(run) == after
                assert len(effects.requests) == 1
                await asker.decide(after, decision)
                await end(asker, run)
    requests = 2 if decision == "approve" else 1
    assert effects.requests == [before.call] * requests
    story = (await asker.stories())[run]
    if decision == "approve":
        await check(asker, run, double, takeovers=1)
    told = [one.data for one in story.events if one.type.startswith("approval.")]
    assert [(one["round"], one.get("decision")) for one in told] == [
        (1, None), (1, "approve"), (2, None), (2, decision),
    ]  # fmt: skip
    story.check()
    assert story.types[-1] == "run.completed"


async def test_a_run_that_is_cancelled_while_nobody_has_it_tells_what_it_used(
    arena: Arena, asker: Asker
) -> None:
    effects, double = Effects(unheard=2), ProviderDouble()
    async with effects.serve() as url, double.serve() as provider:
        model = "double/thinking:calls=effect,effect"
        spec = AgentSpec(model=model, tools=("effect",), instructions="Do what you are asked, twice.")
        run = await submit(asker, spec)
        with instance(arena, "killed", provider, url) as killed:
            await effects.reached.wait()
            kill(killed)
        await asker.cancel(run)
        with instance(arena, "heir", provider, url):
            await end(asker, run)
    story, row = (await asker.stories())[run], (await asker.runs())[run]
    story.check()
    assert (row.status, len(effects.requests), len(double.requests)) == ("cancelled", 2, 1)
    used = story.events[-1].data["usage"]
    assert (used["requests"], used["tool_calls"], used["reasoning"]) == (1, 1, REASONING)
    assert (row.input_tokens, row.output_tokens) == (used["input"], used["output"])
    metered: Counter[str] = Counter()
    for one in await asker.usage():
        record = parse(one.encode())
        metered[record.data.meter] += int(record.data.quantity)
    assert metered == {
        "llm.requests": 1, "tool.calls": 1, "llm.tokens.output": used["output"], "llm.tokens.cached": used["cached"],
        "llm.tokens.input": used["input"] - used["cached"],
    }  # fmt: skip
