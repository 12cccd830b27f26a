"""A run asks before a call that a person must allow, stops there, and goes on with what they said."""

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from core.contracts.run_events import Decision
from services.agents.journal import FencedError
from services.agents.model import AgentSpec, Answered, Question
from services.agents.tools import Call, Output, SideEffect, Tool, Tools
from tests.services.agents.loop_support import Arena, Notebook, arena, asked, check_answer, resumed


class Numbered(msgspec.Struct):
    n: int


class Counting:
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def call(self, call: Call, arguments: Numbered) -> Output:
        self.calls.append(call.key)
        return Output(f"done {arguments.n}")

    def tool(self, name: str, side_effect: SideEffect) -> Tool:
        return Tool(name, "Does it.", Numbered, side_effect, self.call)


@pytest.fixture
async def stage() -> AsyncIterator[Arena]:
    async with arena(Tools([])) as opened:
        yield opened


def answer(question: Question, decision: Decision, note: str = "") -> Answered:
    return Answered(question.call, question.round, decision, note)


@pytest.mark.parametrize(
    ("side_effect", "policy", "reason"),
    [
        ("unsafe", {}, "unsafe"),
        ("unsafe", {"effect": "always"}, "policy"),
        ("pure", {"effect": "always"}, "policy"),
        ("idempotent", {"effect": "always"}, "policy"),
        ("unsafe", {"effect": "never"}, None),
        ("pure", {}, None),
        ("idempotent", {"effect": "never"}, None),
    ],
)
async def test_who_is_asked(
    stage: Arena, side_effect: SideEffect, policy: dict[str, str], reason: str | None
) -> None:
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("effect", side_effect)]))
    run = arena_.context(model="double/calls=effect", tools=("effect",), approval=policy)
    journal = Notebook()
    outcome = await arena_.execute(run, journal)
    if reason is None:
        check_answer(journal, outcome)
        assert len(counting.calls) == 1
        return
    question = asked(outcome)
    assert (question.reason, question.tool, question.arguments) == (reason, "effect", '{"n": 1}')
    assert counting.calls == []
    assert journal.types()[-1] == "usage", "the turn is whole and durable before anybody is asked"
    assert len(journal.checkpoints) == 1
    # A whole execution later it goes on from there: nothing is asked, said or billed twice.
    later = Notebook(earlier=journal)
    outcome = await arena_.execute(resumed(run, journal, answer(question, "approve")), later)
    check_answer(later, outcome)
    assert [turn for type, turn in later.turns if type == "tool_result"] == [1]
    assert counting.calls == [question.call]
    assert (outcome.totals.requests, outcome.totals.tool_calls) == (2, 1)
    assert later.metered()["llm.requests"] == 2
    assert later.metered()["tool.calls"] == 1


@pytest.mark.parametrize(("decision", "says"), [("reject", "did not allow"), ("expired", "nobody answered")])
async def test_a_call_that_is_not_allowed_is_told_to_the_model_and_not_billed(
    stage: Arena, decision: Decision, says: str
) -> None:
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("effect", "unsafe")]))
    run, first = arena_.context(model="double/calls=effect", tools=("effect",)), Notebook()
    question = asked(await arena_.execute(run, first))
    later = Notebook(earlier=first)
    outcome = await arena_.execute(resumed(run, first, answer(question, decision, "not today")), later)
    assert says in check_answer(later, outcome)["text"]
    assert counting.calls == []
    (result,) = later.of("tool_result")
    assert result["status"] == "error"
    assert "not today" in result["content"]
    assert "tool.calls" not in later.metered()


async def test_an_approved_call_that_is_interrupted_is_asked_about_again(stage: Arena) -> None:
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("effect", "unsafe")]))
    run, first = arena_.context(model="double/calls=effect", tools=("effect",)), Notebook()
    question = asked(await arena_.execute(run, first))
    run = resumed(run, first, answer(question, "approve"))
    dying = Notebook(earlier=first, dies_at=2)
    with pytest.raises(FencedError):
        await arena_.execute(run, dying)
    assert len(counting.calls) == 1
    after = Notebook(earlier=dying)
    again = asked(await arena_.execute(resumed(run, dying), after))
    assert (again.call, again.round, again.reason) == (question.call, 2, "interrupted")
    # The first answer is not one to the second question.
    assert len(counting.calls) == 1
    for decision, calls in (("reject", 1), ("approve", 2)):
        last = Notebook(earlier=after)
        outcome = await arena_.execute(resumed(run, after, answer(again, decision)), last)  # type: ignore[arg-type]
        check_answer(last, outcome)
        assert len(counting.calls) == calls


async def test_calls_of_one_turn_are_asked_about_one_after_the_other(stage: Arena) -> None:
    counting = Counting()
    tools = [counting.tool("one", "unsafe"), counting.tool("two", "pure"), counting.tool("three", "unsafe")]
    arena_ = replace(stage, tools=Tools(tools))
    run = arena_.context(model="double/calls=one,two,three", tools=("one", "two", "three"))
    journal, seen = Notebook(), []
    while (outcome := await arena_.execute(run, journal)).status == "waiting":
        question = asked(outcome)
        seen.append((question.tool, len(counting.calls)))
        run = resumed(run, journal, answer(question, "approve"))
        journal = Notebook(earlier=journal)
    check_answer(journal, outcome)
    assert seen == [("one", 0), ("three", 2)]
    assert len(counting.calls) == len(set(counting.calls)) == 3
    assert (outcome.totals.requests, outcome.totals.tool_calls) == (2, 3)


async def test_arguments_that_do_not_fit_are_not_asked_about(stage: Arena) -> None:
    counting = Counting()
    arena_ = replace(stage, tools=Tools([counting.tool("effect", "unsafe")]))
    model = 'double/calls=effect:{"n":"x"}'
    journal, outcome = await arena_.ask(model=model, tools=("effect",))
    assert "do not fit" in check_answer(journal, outcome)["text"]


def test_a_policy_for_a_tool_that_the_agent_lacks_is_refused() -> None:
    spec = {"model": "a/b", "tools": ["calculator"], "approval": {"calculater": "always"}}
    with pytest.raises(msgspec.ValidationError, match="calculater"):
        msgspec.convert(spec, AgentSpec)
