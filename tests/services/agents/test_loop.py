"""A run from question to answer: events, usage, citations, tools."""

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.usage import RequestUsage

from services.agents.loop import _tokens
from services.agents.metering import Tokens
from services.agents.model import Limits, StoredMessage
from services.agents.providers import ModelPrice
from services.agents.speech import Speech
from services.agents.tools import Tools
from services.agents.tools.calculator import CALCULATOR
from services.agents.tools.knowledge import knowledge_search
from services.agents.tools.memory import MemoryClient
from tests.doubles.memory import MemoryDouble
from tests.doubles.provider import CASSETTES
from tests.services.agents.loop_support import KEY, Arena, Notebook, arena, assembled, check_answer, until

HANDBOOK = "# Runs\n\nA run is a row. When an instance dies, another one resumes the\nrun from its last checkpoint. 运行会从最后一个检查点恢复。"


@pytest.fixture
async def memory() -> MemoryDouble:
    return MemoryDouble(KEY, {("doc_1", 2): HANDBOOK, ("doc_2", 1): "Bananas are yellow."})


@pytest.fixture
async def stage(memory: MemoryDouble) -> AsyncIterator[Arena]:
    async with memory.serve() as address:
        client = MemoryClient(address, KEY)
        async with arena(Tools([CALCULATOR, knowledge_search(client)], client)) as opened:
            yield opened
        await client.close()


async def test_an_answer_quotes_what_the_documents_say(stage: Arena, memory: MemoryDouble) -> None:
    journal, outcome = await stage.ask(
        "How is a run resumed after its instance dies?",
        tools=("knowledge_search",),
        knowledge_bases=("kb_1",),
    )
    completed = check_answer(journal, outcome)
    assert journal.types() == [
        "tool_call.started", "tool_call.delta", "tool_call.completed", "usage", "tool_result",
        "message.delta", "usage", "message.completed",
    ]  # fmt: skip
    assert assembled(journal, outcome.message_id) == outcome.text
    first = completed["citations"][0]
    assert first["document"] == "doc_1"
    assert (first["version"], first["page"], first["marker"], first["name"]) == (2, 3, 1, "doc_1.md")
    assert HANDBOOK[first["start"] : first["end"]] == first["quote"]
    assert first["quote"] == "When an instance dies, another one resumes the\nrun from its last checkpoint."
    assert outcome.citations
    assert memory.searches[0].knowledge_bases == ["kb_1"]
    caller = memory.callers[0]
    assert (caller.tenant_id, caller.subject, caller.scopes) == (
        "org_test",
        "usr_test",
        frozenset({"memory:read"}),
    )
    assert all(0 < left <= 10 for left in memory.deadlines)


async def test_a_quote_that_the_document_no_longer_says_is_dropped(
    stage: Arena, memory: MemoryDouble
) -> None:
    def change(checkpoints: int) -> None:
        if checkpoints == 3:  # the answer is there, its quotes are not checked yet
            memory.texts["doc_1", 2] = HANDBOOK.replace("last", "first")

    journal = Notebook(after=change)
    outcome = await stage.execute(
        stage.context("How is a run resumed?", tools=("knowledge_search",)), journal
    )
    completed = check_answer(journal, outcome)
    assert "last checkpoint" in outcome.text
    assert not [one for one in completed["citations"] if "last checkpoint" in one["quote"]]


async def test_without_memory_the_answer_says_so_and_everybody_sees_it(
    stage: Arena, memory: MemoryDouble
) -> None:
    memory.broken = True
    journal, outcome = await stage.ask("How do runs resume?", tools=("knowledge_search",))
    check_answer(journal, outcome)
    assert journal.of("retrieval.degraded") == [{"reason": "unavailable"}]
    assert "no passage" in outcome.text
    assert outcome.citations == ()


async def test_usage_is_what_the_provider_reported(stage: Arena) -> None:
    journal, outcome = await stage.ask("What is 6 * 7.5?", tools=("calculator",))
    check_answer(journal, outcome)
    assert outcome.text == "6 * 7.5 = 45"
    assert (outcome.totals.requests, outcome.totals.tool_calls, outcome.provider) == (2, 1, "double/answer")
    sums = journal.metered()
    assert sums["llm.requests"] == 2
    assert sums["tool.calls"] == 1
    assert sums["llm.tokens.input"] == outcome.totals.input_tokens > 0
    assert sums["llm.tokens.output"] == outcome.totals.output_tokens > 0
    assert sum(len(one["usage"]) for one in journal.of("usage")) == 6
    told = {id for one in journal.of("usage") for id in one["usage"]}
    assert told == {event.id for event in journal.usage if event.data.meter != "tool.calls"}
    assert {event.source for event in journal.usage} == {"agents"}
    (result,) = journal.of("tool_result")
    assert (result["status"], result["content"]) == ("ok", '{"expression":"6 * 7.5","value":"45"}')
    calls = {
        journal.of(kind)[0]["call"]
        for kind in ("tool_call.started", "tool_call.delta", "tool_call.completed", "tool_result")
    }
    assert len(calls) == 1
    (arguments,) = journal.of("tool_call.completed")
    assert arguments["arguments"] == "".join(one["fragment"] for one in journal.of("tool_call.delta"))


async def test_absurd_reports_of_tokens_are_bounded() -> None:
    said = ModelResponse(
        parts=[], usage=RequestUsage(input_tokens=10**30, output_tokens=-5, cache_read_tokens=-1)
    )
    assert _tokens(said) == Tokens(input=1_000_000_000, output=0, cached=0)


async def test_history_and_instructions_reach_the_model(stage: Arena) -> None:
    history = (
        StoredMessage("msg_1", "user", "My name is Ada."),
        StoredMessage("msg_2", "assistant", "Hello Ada."),
    )
    await stage.ask("Who am I?", history=history, instructions="Be brief.", temperature=0.25)
    body = stage.double.requests[-1]
    assert [(one["role"], one["content"]) for one in body["messages"]] == [
        ("system", "Be brief."), ("user", "My name is Ada."), ("assistant", "Hello Ada."), ("user", "Who am I?"),
    ]  # fmt: skip
    assert body["temperature"] == 0.25
    assert body["stream_options"] == {"include_usage": True}
    assert stage.double.headers[-1]["authorization"] == "Bearer sk-of-the-double"


async def test_arguments_that_are_not_json_go_back_to_the_model(stage: Arena) -> None:
    journal, outcome = await stage.ask(model="double/malformed", tools=("calculator",))
    check_answer(journal, outcome)
    (result,) = journal.of("tool_result")
    assert result["status"] == "error"
    assert outcome.totals.tool_calls == 0
    assert "tool.calls" not in journal.metered()


async def test_arguments_that_do_not_fit_and_unknown_tools_go_back_to_the_model(stage: Arena) -> None:
    for name in ("calculator", "no_such_tool"):
        journal, outcome = await stage.ask(model=f"double/calls={name}", tools=("calculator",))
        check_answer(journal, outcome)
        assert [one["status"] for one in journal.of("tool_result")] == ["error"]
        assert "tool.calls" not in journal.metered()


async def test_half_a_surrogate_said_before_a_tool_call_is_replaced_at_once(stage: Arena) -> None:
    journal = Notebook()
    speech = Speech(stage.context(), journal, {}, turn=1, attempt=1)
    speech.on(PartStartEvent(index=0, part=TextPart("a\ud83d")))
    speech.on(PartDeltaEvent(index=0, delta=TextPartDelta("\ude00\x00b")))
    assert speech.text == assembled(journal, speech.message) == "a\ufffd\ufffd\ufffdb"


async def test_a_run_ends_well_where_a_model_says_half_a_surrogate(stage: Arena) -> None:
    journal, outcome = await stage.ask(model="double/half", tools=("calculator",))
    check_answer(journal, outcome)
    first, _ = journal.of("message.completed")
    assert first["text"] == "Half \ufffd of it."
    assert "tool.calls" in journal.metered()


async def test_anthropic_answers_too_and_cached_tokens_are_metered_once(stage: Arena) -> None:
    journal, outcome = await stage.ask(model="claude/answer")
    check_answer(journal, outcome)
    assert outcome.text == "Hello from the double."
    assert journal.metered() == {
        "llm.tokens.input": 25, "llm.tokens.cached": 5, "llm.tokens.output": 7, "llm.requests": 1,
    }  # fmt: skip
    assert stage.double.headers[-1]["authorization"] == "Bearer sk-of-the-double"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(steps=1), "limit_steps"),
        (Limits(tokens=3), "limit_tokens"),
        (Limits(cost=Decimal("0.0001")), "limit_cost"),
    ],
)
async def test_limits_end_a_run_before_its_next_request(stage: Arena, limits: Limits, code: str) -> None:
    journal, outcome = await stage.ask(
        "What is 1 + 1?", model="priced/answer", tools=("calculator",), limits=limits
    )
    assert (outcome.status, outcome.error_code) == ("failed", code)
    assert len(stage.double.requests) == 1
    assert journal.metered()["llm.requests"] == 1


async def test_what_a_provider_does_not_report_is_guessed_and_counts_against_limits(stage: Arena) -> None:
    history = (StoredMessage("msg_1", "user", "Früher"), StoredMessage("msg_2", "assistant", "Ja"))
    journal, outcome = await stage.ask(
        "Who?", model="double/unreported=8", history=history, instructions="Be brief."
    )
    check_answer(journal, outcome)
    # 7 + 2 + 4 + 9 bytes were sent, eight words came.
    assert (outcome.totals.input_tokens, outcome.totals.output_tokens) == (
        6,
        math.ceil(len(outcome.text) / 4),
    )
    assert journal.metered() == {
        "llm.tokens.input": 6, "llm.tokens.output": outcome.totals.output_tokens, "llm.requests": 1,
    }  # fmt: skip
    assert journal.of("usage")[0]["output"] == outcome.totals.output_tokens


@pytest.mark.parametrize(
    ("limits", "code"),
    [(Limits(tokens=60), "limit_tokens"), (Limits(cost=Decimal("0.12")), "limit_cost")],
)
async def test_a_request_is_ended_where_its_answer_goes_beyond_the_run(
    stage: Arena, limits: Limits, code: str
) -> None:
    price = ModelPrice(Decimal(1000), Decimal(2000))
    double = stage.providers.platform["double"]
    stage.providers.platform["double"] = replace(double, prices={"slow=400": price})
    journal, outcome = await stage.ask("Tell", model="double/slow=400", limits=limits)
    assert (outcome.status, outcome.error_code, outcome.text) == ("failed", code, "")
    await until(lambda: not stage.double.open)
    assert len(stage.double.requests) == 1
    assert journal.of("message.completed") == []
    # Sixty tokens and the one that was too many, which were made and are owed.
    assert 60 < outcome.totals.output_tokens <= 63
    assert journal.metered() == {
        "llm.tokens.input": 1, "llm.tokens.output": outcome.totals.output_tokens, "llm.requests": 1,
    }  # fmt: skip


async def test_a_limit_of_output_holds_for_all_requests_of_a_run_together(stage: Arena) -> None:
    journal, outcome = await stage.ask("What is 1 + 1?", tools=("calculator",), max_output_tokens=100)
    check_answer(journal, outcome)
    first = journal.of("usage")[0]["output"]
    assert [body["max_completion_tokens"] for body in stage.double.requests] == [100, 100 - first]
    journal, outcome = await stage.ask("What is 1 + 1?", tools=("calculator",), max_output_tokens=2)
    assert (outcome.status, outcome.error_code) == ("failed", "limit_output_tokens")
    assert len(stage.double.requests) == 3


async def test_a_cost_limit_without_a_price_is_refused(stage: Arena) -> None:
    _, outcome = await stage.ask(limits=Limits(cost=Decimal(1)))
    assert outcome.error_code == "cost_unknown"
    assert stage.double.requests == []


if CASSETTES is not None:

    async def test_recorded_replies_stream_as_they_were(stage: Arena) -> None:
        name = "openai-v2__test_async_chat_completion_streaming"
        journal, outcome = await stage.ask("Say this is a test", model=f"double/recorded={name}")
        check_answer(journal, outcome)
        assert outcome.text == assembled(journal, outcome.message_id) == "This is a test."
        assert (outcome.totals.input_tokens, outcome.totals.output_tokens) == (12, 5)

    async def test_recorded_parallel_calls_of_unknown_tools_end_by_the_limit(stage: Arena) -> None:
        name = "openai-v2__test_async_chat_completion_multiple_tools_streaming_with_content"
        journal, outcome = await stage.ask(
            model=f"double/recorded={name}", tools=("calculator",), limits=Limits(steps=2)
        )
        assert outcome.error_code == "limit_steps"
        # The reply is the same each time, the provider's ids too; ours tell the turns apart.
        started = [one["call"] for one in journal.of("tool_call.started")]
        assert len(started) == len(set(started)) == 4
        assert {one["call"] for one in journal.of("tool_result")} == set(started)
