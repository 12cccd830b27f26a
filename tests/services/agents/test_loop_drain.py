"""An instance that drains in the middle of an answer ends in order: nothing is left open, nothing is logged."""

import asyncio

from services.agents.model import AgentSpec
from tests.doubles.provider import ProviderDouble
from tests.services.agents.arena import Arena, Asker
from tests.services.agents.test_loop_kill import instance, submit


async def test_a_drain_in_the_middle_of_answers_logs_no_error(arena: Arena, asker: Asker) -> None:
    double = ProviderDouble()
    async with double.serve() as provider:
        runs = [await submit(asker, AgentSpec(model="double/slow=2000")) for _ in range(8)]
        with instance(arena, "drained", provider, "http://127.0.0.1:9/", HEADRACE_LOG_LEVEL="debug"):
            async with asyncio.timeout(60):
                while double.open < len(runs):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
    log = arena.log("drained").read_text()
    assert "runs handed over" in log
    assert [line for line in log.splitlines() if '"level":"error"' in line or "already running" in line] == []
    # A generator that is still open when the event loop ends is closed twice at once, now and then an error.
    assert "GeneratorExit" not in log.partition("runs handed over")[2]
