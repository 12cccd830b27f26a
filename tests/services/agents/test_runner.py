"""Runs on several instances: whatever dies, freezes or drains, each run ends once and says everything once."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from core.contracts.run_events import Totals
from services.agents import schemas
from services.agents.handlers import Conversations
from services.agents.journal import Journal
from services.agents.metering import Tokens
from services.agents.model import Outcome, Role, RunContext
from services.agents.runner import Runner
from services.agents.saved import SavedCut, SavedTurn, encode
from services.common.errors import Problem
from tests.services.agents.arena import Arena, Asker, in_process
from tests.services.agents.scripted import answer_to, execute

LONG = "steps=12 words=4 pause=0.02"


async def until(true: Callable[[], Awaitable[bool]], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - it asks the database
            await asyncio.sleep(0.05)


async def all_ended(asker: Asker) -> bool:
    return all(run.ended_at is not None for run in (await asker.runs()).values())


def here(arena: Arena, **options: Any) -> AbstractAsyncContextManager[Runner]:
    return in_process(arena, execute, **options)


async def check_all(asker: Asker, script: str, runs: list[str]) -> None:
    """Every run completed with the script's answer, told once, stored once, metered once."""
    stories, rows, answers = await asker.stories(), await asker.runs(), await asker.answers()
    steps = int(dict(part.split("=") for part in script.split())["steps"])
    answer = answer_to(dict(part.split("=", 1) for part in script.split()))
    for run in runs:
        stories[run].check()
        assert rows[run].status == "completed"
        assert rows[run].last_seq == len(stories[run].events)
        assert stories[run].text == answers[run] == answer
    assert await asker.usage() == sorted(f"{run}:{step}" for run in runs for step in range(steps))


async def test_another_instance_goes_on_when_one_is_killed(arena: Arena, asker: Asker) -> None:
    effects, gate = arena.folder / "effects", arena.folder / "gate"
    script = f"{LONG} effects={effects} gate={gate}"
    runs = [(await asker.ask(script)).run_id for _ in range(6)]
    # Leases longer than this machine stalls: else an instance takes its own runs over.
    with arena.runner("killed", lease=6) as killed:

        async def under_way() -> bool:
            found = [run for run in (await asker.runs()).values() if run.owner == "killed"]
            return len(found) == 6 and all(run.steps >= 2 for run in found)

        await until(under_way)
        os.kill(killed.pid, signal.SIGKILL)
        gate.touch()
        with arena.runner("heir", lease=60):
            await until(lambda: all_ended(asker))
    await check_all(asker, script, runs)
    for story in (await asker.stories()).values():
        (takeover,) = story.takeovers
        assert (takeover["old_epoch"], takeover["new_epoch"]) == (1, 2)
        # From the last checkpoint, not from the start.
        assert takeover["resumed_from"] >= 2
    # What a step does before its checkpoint may happen twice for the step that was cut, for no other.
    lines = effects.read_text().splitlines()
    assert set(lines) == {f"{run} {step}" for run in runs for step in range(12)}
    assert len(lines) - len(set(lines)) <= len(runs)


async def test_an_instance_that_was_frozen_changes_nothing(arena: Arena, asker: Asker) -> None:
    gate = arena.folder / "gate"
    script = f"{LONG} gate={gate}"
    runs = [(await asker.ask(script)).run_id for _ in range(4)]
    with arena.runner("frozen") as frozen:

        async def under_way() -> bool:
            found = [run for run in (await asker.runs()).values() if run.owner == "frozen"]
            return len(found) == 4 and all(run.steps >= 2 for run in found)

        await until(under_way)
        await _freeze(asker, frozen.pid)
        try:
            with arena.runner("heir", lease=60):

                async def taken_over() -> bool:
                    return all(run.epoch == 2 for run in (await asker.runs()).values())

                await until(taken_over)
                gate.touch()
                os.kill(frozen.pid, signal.SIGCONT)
                await until(lambda: all_ended(asker))
                log = arena.log("frozen")
                await until(lambda: _said(log.read_text, "another's now", 4))
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
    assert frozen.returncode == 0
    await check_all(asker, script, runs)
    assert all(len(story.takeovers) == 1 for story in (await asker.stories()).values())


async def _freeze(asker: Asker, pid: int) -> None:
    """SIGSTOP between two transactions: one that is open holds the rows that the heir is to take."""
    held = (
        "select 1 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and state like 'idle in transaction%'"
    )
    async with asyncio.timeout(60):
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.3)  # the server ends what it was sent before
            if not await asker.rows(held):
                return
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.05)


async def _said(read: Callable[[], str], what: str, times: int) -> bool:
    return len(re.findall(what, read())) == times


async def test_8_runs_of_many_conversations_go_at_once_on_all_instances(arena: Arena, asker: Asker) -> None:
    """Check 8 without its clock: forty runs stand before one gate together, so none waits behind another."""
    gate = arena.folder / "gate"
    for _ in range(40):
        await asker.ask(f"steps=1 gate={gate}")
    with arena.runner("one"), arena.runner("two"):

        async def all_under_way() -> bool:
            rows = (await asker.runs()).values()
            return len([run for run in rows if run.status == "running" and run.steps == 1]) == 40

        # None has ended: all of them stand before the gate together.
        await until(all_under_way)
        owners = [run.owner for run in (await asker.runs()).values()]
        assert sorted(owners.count(name) for name in ("one", "two")) == [16, 24]
        gate.touch()
        await until(lambda: all_ended(asker))
    for story in (await asker.stories()).values():
        story.check()
        assert story.types[1] == "run.started"


async def test_runs_of_a_conversation_go_one_after_another(arena: Arena, asker: Asker) -> None:
    first = await asker.ask("steps=1 history=1")
    for _ in range(4):
        await asker.ask("steps=1 history=1", conversation_id=first.conversation_id)
    with arena.runner("one"), arena.runner("two"):
        await until(lambda: all_ended(asker))
    rows = sorted((await asker.runs()).values(), key=lambda run: run.turn)
    assert [run.turn for run in rows] == [1, 2, 3, 4, 5]
    for earlier, later in pairwise(rows):
        assert later.started_at > earlier.ended_at
    answers = await asker.answers()
    question = "steps=1 history=1"
    assert answers[rows[2].id] == f"{question}||{question}|{answers[rows[1].id]}"


async def test_a_run_is_given_what_its_conversation_was_opened_with_and_the_newest_turns(
    arena: Arena, asker: Asker
) -> None:
    prior: list[tuple[Role, str]] = [("system", "Be brief."), *[("user", f"p{n}") for n in range(250)]]
    first = await asker.ask("steps=1 history=1", prior=prior)
    async with here(arena):
        await until(lambda: all_ended(asker))
        assert (await asker.answers())[first.run_id].split("|") == [text for _, text in prior]
        # Turn 1 has a question and an answer; 250 more make it as long as many turns.
        await asker.execute(
            "insert into message (tenant_id, id, conversation_id, turn, place, role, text)"
            " select :t, 'msg_' || n, :c, 1, 10 + n, 'user', 'm' || n from generate_series(0, 249) n",
            t=asker.tenant_id,
            c=first.conversation_id,
        )
        second = await asker.ask("steps=1 history=1", conversation_id=first.conversation_id)
        await until(lambda: all_ended(asker))
    given = (await asker.answers())[second.run_id].split("|")
    assert given == [text for _, text in prior] + [f"m{n}" for n in range(50, 250)]


async def test_a_draining_instance_hands_its_runs_over_at_once(arena: Arena, asker: Asker) -> None:
    gate = arena.folder / "gate"
    runs = [(await asker.ask(f"{LONG} gate={gate}")).run_id for _ in range(3)]
    # Nobody could wait for this lease to end by itself.
    with arena.runner("leaving", lease=3600) as leaving:

        async def under_way() -> bool:
            return all(run.steps >= 2 for run in (await asker.runs()).values())

        await until(under_way)
        with arena.runner("heir", lease=60):
            leaving.send_signal(signal.SIGTERM)

            async def inherited() -> bool:
                return all(run.epoch == 2 for run in (await asker.runs()).values())

            await until(inherited)  # before the gate opens: a slow process would end them itself
            gate.touch()
            await until(lambda: all_ended(asker))
            assert await asyncio.to_thread(leaving.wait, 20) == 0
    await check_all(asker, LONG, runs)
    assert all(len(story.takeovers) == 1 for story in (await asker.stories()).values())
    # A hand-over is no stall: a run may live through any number of deployments.
    assert all(run.stalls == 0 for run in (await asker.runs()).values())


async def test_a_queued_run_is_cancelled_where_it_waits(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("steps=1")).run_id
    await asker.cancel(run)
    await asker.cancel(run)
    story = (await asker.stories())[run]
    story.check()
    assert story.types == ["run.queued", "run.cancelled"]
    async with here(arena):
        await asyncio.sleep(0.3)
    assert (await asker.stories())[run].types == story.types


async def test_a_running_run_is_cancelled_whether_its_loop_listens_or_not(arena: Arena, asker: Asker) -> None:
    runs = [(await asker.ask(f"steps=1 gate=/nowhere{more}")).run_id for more in ("", " deaf=1")]
    async with here(arena, renew_seconds=0.1):

        async def under_way() -> bool:
            return all(run.steps == 1 for run in (await asker.runs()).values())

        await until(under_way)
        for run in runs:
            await asker.cancel(run)
        await until(lambda: all_ended(asker))
    for story in (await asker.stories()).values():
        story.check()
        assert story.types[-1] == "run.cancelled"
        assert story.events[-1].data["by"] == "usr_asker"
    assert await asker.answers() == {}


async def test_a_run_ends_at_its_wall_time(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("steps=1 gate=/nowhere", seconds=1)).run_id
    async with here(arena):
        await until(lambda: all_ended(asker))
    story = (await asker.stories())[run]
    story.check()
    assert story.events[-1].data["code"] == "limit_seconds"


async def test_a_run_that_ends_without_its_loop_tells_what_it_used(arena: Arena, asker: Asker) -> None:
    async def deaf(_: RunContext, journal: Journal) -> Outcome:
        turn = SavedTurn(
            turn=1, model="test/scripted", message="", calls={}, tokens=Tokens(input=50, output=20, cached=30),
            cost="0", messages=Raw(b"[]"),
        )  # fmt: skip
        await journal.checkpoint("model", encode(turn))
        try:
            await asyncio.sleep(3600)
        finally:  # as the real one does with what a provider had reported of a turn that was cut
            cut = SavedCut(
                turn=2, model="test/scripted", tokens=Tokens(input=5, reasoning=1, output=2), cost="0"
            )
            await journal.checkpoint("model", encode(cut))
        raise AssertionError

    counted: list[tuple[str, int]] = []

    async def settle(window: str, tokens: int) -> None:
        counted.append((window, tokens))

    run = (await asker.ask("", seconds=1)).run_id
    async with in_process(arena, deaf, settle=settle):
        await until(lambda: all_ended(asker))
    assert counted == [(f"tenant:{asker.tenant_id}", 77)], (
        "against the tokens a minute of its organisation too"
    )
    told = (await asker.stories())[run].events[-1].data
    assert told["code"] == "limit_seconds"
    assert told["usage"] == {
        "input": 55, "output": 22, "cached": 30, "reasoning": 1, "requests": 2, "tool_calls": 0,
    }  # fmt: skip


async def test_a_run_that_another_takes_over_at_its_end_is_counted_by_that_one(
    arena: Arena, asker: Asker
) -> None:
    async def overtaken(context: RunContext, journal: Journal) -> Outcome:
        outcome = await execute(context, journal)
        await asker.execute(
            "update run set epoch = epoch + 1, lease_until = now() + interval '1 hour' where id = :run",
            run=run,
        )
        return replace(outcome, totals=Totals(9, 4))

    counted: list[int] = []

    async def settle(_: str, tokens: int) -> None:
        counted.append(tokens)

    run = (await asker.ask("steps=1")).run_id
    async with in_process(arena, overtaken, settle=settle) as runner:

        async def left() -> bool:
            return (await asker.runs())[run].epoch == 2 and not runner.in_flight

        await until(left)
    assert counted == []


async def test_a_loop_that_fails_fails_its_run_only(arena: Arena, asker: Asker) -> None:
    bad, good = (await asker.ask("end=raise")).run_id, (await asker.ask("steps=1")).run_id
    async with here(arena):
        await until(lambda: all_ended(asker))
    rows = await asker.runs()
    assert (rows[bad].status, rows[bad].error_code, rows[good].status) == (
        "failed",
        "internal_error",
        "completed",
    )
    for story in (await asker.stories()).values():
        story.check()


async def test_a_spec_beyond_its_bounds_is_refused_and_stops_nobody(arena: Arena, asker: Asker) -> None:
    beyond: list[dict[str, Any]] = [{"instructions": "x" * 100_001}, {"model": "test/" + "x" * 250}]
    for wrong in beyond:
        with pytest.raises(Problem) as refused:
            await asker.ask("steps=1", **wrong)
        assert refused.value.status == 422
    run = (await asker.ask("steps=1")).run_id
    async with here(arena):
        await until(lambda: all_ended(asker))
    assert {key: row.status for key, row in (await asker.runs()).items()} == {run: "completed"}


async def test_a_run_that_cannot_be_read_fails_alone_with_a_reason(arena: Arena, asker: Asker) -> None:
    """What an older or newer version stored, or a hand changed."""
    bad = {
        "update run set spec = '{\"model\": 7}' where id = :run": (await asker.ask("steps=1")).run_id,
        "update message set citations = '[7]' where run_id = :run": (await asker.ask("steps=1")).run_id,
        "delete from message where run_id = :run": (await asker.ask("steps=1")).run_id,
    }
    for statement, run in bad.items():
        await asker.execute(statement, run=run)
    good = (await asker.ask("steps=1")).run_id
    async with here(arena) as runner:
        await until(lambda: all_ended(asker), seconds=20)
        assert not runner.trouble
    rows, stories = await asker.runs(), await asker.stories()
    assert rows[good].status == "completed"
    for run in bad.values():
        assert (rows[run].status, rows[run].error_code) == ("failed", "run_unreadable")
        stories[run].check()


async def test_a_run_that_cannot_be_read_can_be_looked_at_and_deleted(arena: Arena, asker: Asker) -> None:
    asked = await asker.ask("steps=1")
    await asker.execute("update run set spec = '{\"model\": 7}' where id = :run", run=asked.run_id)
    talks = Conversations(asker.app)
    principal = replace(asker.principal, scopes=frozenset({"agents:read", "agents:run"}))
    assert schemas.run(await talks.run(principal, asked.run_id))["model"] == ""
    await talks.delete(principal, asked.conversation_id)
    assert await asker.runs() == {}


async def test_an_instance_that_takes_its_own_run_anew_goes_on_with_it(arena: Arena, asker: Asker) -> None:
    gate = arena.folder / "gate"
    run = (await asker.ask(f"steps=2 gate={gate}")).run_id
    async with here(arena, lease_seconds=0.3, renew_seconds=3600) as runner:

        async def often() -> bool:
            return bool((await asker.runs())[run].epoch >= 6)

        # It was too busy to renew, however often: the run has killed nobody and is not given up.
        await until(often)
        gate.touch()
        await until(lambda: all_ended(asker))

        async def idle() -> bool:
            return not runner.in_flight

        await until(idle, seconds=10)
    row = (await asker.runs())[run]
    assert (row.status, row.stalls) == ("completed", 0)
    (await asker.stories())[run].check()


async def test_a_run_that_kills_its_instances_is_given_up(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("steps=1")).run_id
    await asker.execute(
        "update run set status = 'running', epoch = 4, stalls = 3, lease_until = '-infinity' where id = :run",
        run=run,
    )
    async with here(arena):
        await until(lambda: all_ended(asker))
    row = (await asker.runs())[run]
    assert (row.status, row.error_code) == ("failed", "run_stalled")
    assert (await asker.stories())[run].types == ["run.queued", "run.takeover", "run.failed"]


async def test_what_no_database_holds_is_replaced(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask(r"steps=1 answer=a\x00b\ud800c")).run_id
    async with here(arena):
        await until(lambda: all_ended(asker))
    assert (await asker.answers())[run] == "a\ufffdb\ufffdc"
    (await asker.stories())[run].check()
