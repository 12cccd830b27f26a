"""A run that waits: nobody holds it, one decision ends the wait, and time, cancelling and deleting do too."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import msgspec
import pytest

from core.clock import now
from core.contracts.run_events import Totals
from core.database import tenant
from services.agents import decisions, leases, schemas, store
from services.agents.handlers import Conversations
from services.agents.journal import Journal
from services.agents.model import Outcome, Question, RunContext
from services.agents.runner import Execute, Runner
from services.agents.store import Viewer
from services.common.errors import Problem
from services.common.principal import Principal
from tests.services.agents.arena import Arena, Asker, Story, in_process

CALL = "tcl_01900000-0000-7000-8000-000000000001"


async def execute(run: RunContext, journal: Journal) -> Outcome:
    """Asks once after a checkpoint, then answers with what was decided and how many seconds it has left."""
    if not run.answered:
        await journal.checkpoint("model", b"a turn")
        asked = Question(CALL, 1, "effect", '{"n": 1}', "unsafe", now() + timedelta(hours=24))
        return Outcome(status="waiting", question=asked, totals=Totals(5, 2, 1, 1, requests=1))
    (answer,) = run.answered
    assert [one.payload for one in run.checkpoints] == [b"a turn"]
    left = round((run.deadline - now()).total_seconds())
    return Outcome(status="completed", message_id=f"msg_of_{run.run_id}", text=f"{answer.decision} {left}")


def here(arena: Arena, loop: Execute = execute) -> AbstractAsyncContextManager[Runner]:
    return in_process(arena, loop)


async def until(true: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await true():  # noqa: ASYNC110 - it asks the database
            await asyncio.sleep(0.02)


async def asked(asker: Asker, run: str) -> decisions.Approval:
    await until(lambda: asker.waits(run))
    found = await asker.waits(run)
    assert found is not None
    return found


async def ended(asker: Asker, run: str) -> Story:
    async def over() -> bool:
        return (await asker.runs())[run].ended_at is not None

    await until(over)
    story = (await asker.stories())[run]
    story.check()
    assert (await asker.runs())[run].last_seq == len(story.events)
    left = await asker.rows("select 1 from checkpoint where run_id = :run", run=run)
    assert left == []
    return story


async def test_a_decision_lets_the_run_go_on_and_stands(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x", seconds=60)).run_id
    async with here(arena):
        question = await asked(asker, run)
        row = (await asker.runs())[run]
        assert (row.status, row.owner, row.lease_until, row.input_tokens) == ("waiting", "", None, 5)
        # An hour passes.
        await asker.execute(
            "update run set waiting_since = waiting_since - interval '1 hour' where id = :run", run=run
        )
        decided = await asker.decide(question, "approve", "go")
        assert (decided.decision, decided.decided_by, decided.note) == ("approve", "usr_asker", "go")
        story = await ended(asker, run)
    assert await asker.decide(question, "approve", "another note") == decided
    with pytest.raises(Problem) as refused:
        await asker.decide(question, "reject")
    assert (refused.value.status, refused.value.code) == (409, "approval_resolved")
    assert story.types == [
        "run.queued", "run.started", "approval.requested", "approval.resolved", "run.completed",
    ]  # fmt: skip
    assert story.events[2].data == {
        "call": CALL, "round": 1, "name": "effect", "arguments": '{"n": 1}', "reason": "unsafe",
        "expires": story.events[2].data["expires"],
    }  # fmt: skip
    assert story.events[3].data == {"call": CALL, "round": 1, "decision": "approve", "by": "usr_asker"}
    decision, left = (await asker.answers())[run].split()
    assert decision == "approve"
    # The limit of 60 seconds did not run while nobody worked.
    assert 0 < int(left) <= 60
    (audited,) = await asker.rows(
        "select value from outbox where tenant_id = :t and topic = 'audit.logs'", t=asker.tenant_id
    )
    event = msgspec.json.decode(bytes(audited.value))
    assert (event["action"], event["actor"], event["target"]) == ("approval.resolve", "usr_asker", run)
    assert event["detail"] == {"call": CALL, "tool": "effect", "decision": "approve", "round": "1"}


async def test_what_nobody_decides_in_time_is_not_allowed(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        question = await asked(asker, run)
        await asker.execute(
            "update approval set expires_at = now() - interval '1 s' where run_id = :r", r=run
        )
        story = await ended(asker, run)
    assert story.types[-2:] == ["approval.resolved", "run.completed"]
    assert (story.events[-2].data["decision"], story.events[-2].data["by"]) == ("expired", "agents")
    assert (await asker.answers())[run].startswith("expired")
    with pytest.raises(Problem) as refused:
        await asker.decide(question, "approve")
    assert refused.value.code == "approval_resolved"


async def test_a_decision_comes_too_late_even_before_the_sweep(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        question = await asked(asker, run)
    await asker.execute("update approval set expires_at = now() - interval '1 s' where run_id = :r", r=run)
    with pytest.raises(Problem) as refused:
        await asker.decide(question, "approve")
    assert "expired" in refused.value.detail


async def test_a_run_that_waits_is_cancelled_at_once(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        question = await asked(asker, run)
    # Nobody is needed for it.
    await asker.cancel(run)
    story = await ended(asker, run)
    assert story.types[-2:] == ["approval.resolved", "run.cancelled"]
    assert story.events[-2].data["decision"] == "cancelled"
    assert story.events[-1].data == {
        "by": "usr_asker", "usage": {"input": 5, "output": 2, "cached": 1, "reasoning": 1, "requests": 1, "tool_calls": 0},
    }  # fmt: skip
    with pytest.raises(Problem):
        await asker.decide(question, "approve")
    assert (await ended(asker, run)).types == story.types


async def test_an_answer_to_an_earlier_question_is_none_to_the_one_that_stands(
    arena: Arena, asker: Asker
) -> None:
    run = (await asker.ask("x")).run_id

    async def twice(context: RunContext, journal: Journal) -> Outcome:
        """Asks about the same call again, as where an instance dies after the first answer."""
        if (round := len(context.answered) + 1) > 2:
            return Outcome(status="completed", message_id=f"msg_of_{run}", text="done")
        again = Question(CALL, round, "effect", "{}", "interrupted", now() + timedelta(hours=24))
        return Outcome(status="waiting", question=again)

    async with here(arena, twice):
        await asker.decide(await asked(asker, run), "approve")
        second = await asked(asker, run)
        assert second.round == 2
        for decision in ("approve", "reject"):
            body = schemas.NewDecision(decision=decision)
            with pytest.raises(Problem) as refused:
                await Conversations(asker.app).decide(asker.principal, run, CALL, body)
            assert (refused.value.status, refused.value.code) == (409, "approval_asked_again")
            assert "`round` 2" in refused.value.detail
        assert await asker.waits(run) == second
        await asker.decide(second, "approve")
        await ended(asker, run)
    body = schemas.NewDecision(decision="approve")
    assert (await Conversations(asker.app).decide(asker.principal, run, CALL, body))["round"] == 1


async def test_one_that_is_to_end_when_it_asks_ends(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id

    async def cancelled_late(context: RunContext, journal: Journal) -> Outcome:
        """Somebody wants it to end between the loop's last look and the question."""
        outcome = await execute(context, journal)
        await asker.execute("update run set cancel_by = 'usr_late' where id = :run", run=run)
        return outcome

    async with here(arena, cancelled_late):
        story = await ended(asker, run)
    assert story.types[-2:] == ["approval.requested", "run.cancelled"]
    (asked_,) = await asker.rows("select decision from approval where run_id = :r", r=run)
    assert asked_.decision == "cancelled"
    used = {"input": 5, "output": 2, "cached": 1, "reasoning": 1, "requests": 1, "tool_calls": 0}
    assert story.events[-1].data == {"by": "usr_late", "usage": used}
    assert (await asker.runs())[run].input_tokens == 5


async def test_one_that_is_cancelled_between_its_question_and_its_end_leaves_no_question(
    arena: Arena, asker: Asker
) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        await asked(asker, run)
    # As `_WAIT` leaves a run that somebody wanted to end when it asked; no instance has come for it yet.
    await asker.execute("update run set status = 'queued', cancel_by = 'usr_late' where id = :r", r=run)
    await asker.cancel(run)
    assert (await ended(asker, run)).types[-1] == "run.cancelled"
    (asked_,) = await asker.rows("select decision from approval where run_id = :r", r=run)
    assert asked_.decision == "cancelled"


async def test_tokens_are_counted_when_a_run_waits_and_once(arena: Arena, asker: Asker) -> None:
    counted: list[int] = []
    told = asyncio.Event()

    async def settle(name: str, tokens: int) -> None:
        assert name == f"tenant:{asker.tenant_id}"
        counted.append(tokens)
        told.set()

    async def more(context: RunContext, journal: Journal) -> Outcome:
        outcome = await execute(context, journal)
        return outcome if outcome.question else msgspec.structs.replace(outcome, totals=Totals(9, 4))

    run = (await asker.ask("x")).run_id
    async with in_process(arena, more, settle=settle):
        question = await asked(asker, run)
        await asyncio.wait_for(told.wait(), 10)  # a moment after the row says so
        assert counted == [7], "whoever cancels it now leaves nothing uncounted"
        await asker.decide(question, "approve")
        await ended(asker, run)
    assert counted == [7, 6]


async def test_a_deleted_conversation_takes_its_question_along(arena: Arena, asker: Asker) -> None:
    submitted = await asker.ask("x")
    async with here(arena):
        await asked(asker, submitted.run_id)
    await Conversations(asker.app).delete(asker.principal, submitted.conversation_id)
    assert await asker.rows("select 1 from approval where run_id = :r", r=submitted.run_id) == []
    story = (await asker.stories())[submitted.run_id]
    story.check()
    assert story.types[-1] == "run.cancelled"


async def test_a_later_turn_waits_for_the_answer_of_the_earlier(arena: Arena, asker: Asker) -> None:
    first = await asker.ask("x")
    second = await asker.ask("y", conversation_id=first.conversation_id)
    async with here(arena):
        question = await asked(asker, first.run_id)
        assert (await asker.runs())[second.run_id].status == "queued"
        assert await queued(asker) == (0, 0), "no instance could take it"
    await asker.execute("update run set created_at = created_at - interval '1 hour'")
    await asker.decide(question, "reject")
    count, seconds = await queued(asker)
    assert (count, seconds < 3000) == (1, True), "it can be taken since the answer, not for an hour"
    async with here(arena):
        await asker.decide(await asked(asker, second.run_id), "approve")
        await ended(asker, second.run_id)
    rows = await asker.runs()
    assert rows[first.run_id].ended_at < rows[second.run_id].ended_at


async def queued(asker: Asker) -> tuple[int, float]:
    async with asker.system.reader() as connection:
        return await leases.waiting(connection)


async def test_nobody_else_sees_or_decides_it(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        await asked(asker, run)
    stranger = await Asker.of(arena.settings)
    colleague = Principal(tenant_id=asker.tenant_id, subject="usr_colleague", kind="user")
    body = schemas.NewDecision(decision="approve")
    try:
        for principal in (stranger.principal, colleague):
            with pytest.raises(Problem) as refused:
                await Conversations(asker.app).decide(principal, run, CALL, body)
            assert refused.value.status == 404
            with pytest.raises(Problem):
                await Conversations(asker.app).approvals(principal, run)
        with tenant(stranger.tenant_id):
            async with stranger.app.writer() as connection:
                assert await decisions.of_run(connection, run) == []
                assert await store.run(connection, Viewer.of(stranger.principal), run) is None
    finally:
        await stranger.close()
    with pytest.raises(Problem) as unknown:
        await Conversations(asker.app).decide(
            asker.principal, run, CALL, schemas.NewDecision(decision="approve", round=2)
        )
    assert unknown.value.status == 404
    assert await asker.waits(run) is not None


async def test_two_who_decide_at_once_make_one_decision(arena: Arena, asker: Asker) -> None:
    run = (await asker.ask("x")).run_id
    async with here(arena):
        question = await asked(asker, run)
        both = await asyncio.gather(
            asker.decide(question, "approve"), asker.decide(question, "reject"), return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in both) == ["Approval", "Problem"]
        story = await ended(asker, run)
    assert story.types.count("approval.resolved") == 1
