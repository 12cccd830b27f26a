"""An instance dies at every checkpoint in turn; another goes on. Nothing is called, said or billed twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from services.agents.journal import FencedError
from services.agents.tools import Call, Output, SideEffect, Tool, Tools
from tests.services.agents.loop_support import Arena, Notebook, arena, asked, check_answer, resumed


class Numbered(msgspec.Struct):
    n: int


class Counting:
    """A tool whose effects are counted by the key of its call, as an idempotent server would."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def call(self, call: Call, arguments: Numbered) -> Output:
        self.calls.append(call.key)
        return Output(f"done {arguments.n}")

    def tool(self, side_effect: SideEffect) -> Tool:
        return Tool("effect", "Does it.", Numbered, side_effect, self.call)


@pytest.fixture
async def stage() -> AsyncIterator[Arena]:
    async with arena(Tools([])) as opened:
        yield opened


async def run_with_deaths(
    stage: Arena, counting: Counting, side_effect: SideEffect, dies_at: int
) -> tuple[Notebook, Notebook]:
    """The journals of the instance that died when it wanted its checkpoint `dies_at`, and of its successor."""
    arena_ = replace(stage, tools=Tools([counting.tool(side_effect)]))
    run, first = arena_.context(model="double/calls=effect", tools=("effect",)), Notebook(dies_at=dies_at)
    with pytest.raises(FencedError):
        await arena_.execute(run, first)
    second = Notebook(earlier=first)
    outcome = await arena_.execute(resumed(run, first), second)
    check_answer(second, outcome)
    assert (outcome.totals.requests, outcome.totals.tool_calls) == (2, 1)
    assert second.metered()["llm.requests"] == 2
    return first, second


@pytest.mark.parametrize("dies_at", [0, 1, 2])
async def test_an_idempotent_tool_counts_once(stage: Arena, dies_at: int) -> None:
    counting = Counting()
    first, second = await run_with_deaths(stage, counting, "idempotent", dies_at)
    # Killed between effect and checkpoint it is called again, with the same key.
    assert len(counting.calls) == (2 if dies_at == 1 else 1)
    assert len(set(counting.calls)) == 1
    assert second.metered()["tool.calls"] == 1
    assert len(second.of("tool_result")) == (0 if dies_at == 2 else 1)
    assert len(stage.double.requests) == (2 if dies_at == 1 else 3)
    assert first.flushes + second.flushes == len(counting.calls)


@pytest.mark.parametrize("dies_at", [0, 1, 2, 3])
async def test_an_unsafe_tool_is_never_repeated(stage: Arena, dies_at: int) -> None:
    """Of an agent that lets it act unasked: what was interrupted is asked about all the same."""
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("unsafe")]))
    run = arena_.context(model="double/calls=effect", tools=("effect",), approval={"effect": "never"})
    first = Notebook(dies_at=dies_at)
    with pytest.raises(FencedError):
        await arena_.execute(run, first)
    second = Notebook(earlier=first)
    outcome = await arena_.execute(resumed(run, first), second)
    assert len(counting.calls) == 1
    # Checkpoints: turn, begun, result, turn. Without a result nobody knows what happened.
    if dies_at != 2:
        check_answer(second, outcome)
        return
    question = asked(outcome)
    assert (question.call, question.round, question.reason) == (counting.calls[0], 1, "interrupted")
    assert second.of("tool_result") == []


async def test_the_answer_is_not_generated_again(stage: Arena) -> None:
    run, first = stage.context("Who are you?"), Notebook()
    answered = await stage.execute(run, first)
    again = Notebook(earlier=first)
    outcome = await stage.execute(resumed(run, first), again)
    assert len(stage.double.requests) == 1
    assert (outcome.message_id, outcome.text) == (answered.message_id, answered.text)
    assert (outcome.totals.input_tokens, outcome.totals.requests) == (answered.totals.input_tokens, 1)
    check_answer(again, outcome)


async def test_ids_of_usage_come_from_the_work(stage: Arena) -> None:
    run = stage.context("Who are you?")
    journals = [Notebook(), Notebook()]
    for journal in journals:
        await stage.execute(run, journal)
    first, second = ({event.id for event in journal.usage} for journal in journals)
    assert first == second
    other = Notebook()
    await stage.execute(stage.context("Who are you?"), other)
    assert first.isdisjoint(event.id for event in other.usage)


async def test_a_provider_that_fails_between_tool_and_answer_costs_no_second_call(stage: Arena) -> None:
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("unsafe")]))
    journal = Notebook()
    stage.double.next.extend(["calls=effect", "broken", "cut"])
    run = arena_.context(model="double/calls=effect", tools=("effect",), approval={"effect": "never"})
    outcome = await arena_.execute(run, journal)
    check_answer(journal, outcome)
    assert len(counting.calls) == 1
    assert Counter(journal.types())["tool_result"] == 1
    assert len(stage.double.requests) == 4


async def test_a_tool_that_fails_hangs_or_says_too_much_ends_its_call_only(stage: Arena) -> None:
    async def broken(_: Call, __: Numbered) -> Output:
        raise ZeroDivisionError

    async def hanging(_: Call, __: Numbered) -> Output:
        await asyncio.sleep(3600)
        raise AssertionError

    async def talking(_: Call, __: Numbered) -> Output:
        return Output("x" * 1000)

    for call, status in ((broken, "error"), (hanging, "timeout"), (talking, "ok")):
        tool = Tool("effect", "Does it.", Numbered, "pure", call, seconds=0.1, max_characters=100)
        arena_ = replace(stage, tools=Tools([tool]))
        journal, outcome = await arena_.ask(model="double/calls=effect", tools=("effect",))
        check_answer(journal, outcome)
        (result,) = journal.of("tool_result")
        assert result["status"] == status
        assert len(result["content"]) < 150
        (event,) = [event for event in journal.usage if event.data.meter == "tool.calls"]
        assert event.data.dimensions == {"tool": "effect", "outcome": status}
