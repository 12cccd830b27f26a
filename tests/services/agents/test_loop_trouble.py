"""Every misbehaviour of a provider: retried, answered by another model, or failed with its code; and what is owed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.agents.model import Role, StoredMessage
from services.agents.tools import Tools
from services.agents.tools.calculator import CALCULATOR
from tests.services.agents.loop_support import Arena, Notebook, arena, assembled, check_answer, resumed, until


@pytest.fixture
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Arena]:
    """Only a provider that hangs is left soon: a busy machine must not make the others look like it."""
    idle = 0.3 if "hang" in request.node.name else 10.0
    async with arena(Tools([CALCULATOR]), idle=idle) as opened:
        yield opened


PASSING = ["rate-limited", "broken", "cut", "clean-end", "bad-json", "hang", "empty"]
CODES = {
    "rate-limited": ("provider_rate_limited", True, 3),
    "broken": ("provider_error", True, 3),
    "cut": ("provider_unreachable", True, 3),
    "clean-end": ("provider_cut", True, 3),
    "bad-json": ("provider_bad_answer", True, 3),
    "hang": ("provider_timeout", True, 3),
    "empty": ("provider_cut", True, 3),
    "unauthorized": ("provider_auth", False, 1),
    "too-long": ("context_too_long", False, 1),
}


@pytest.mark.parametrize("trouble", PASSING)
async def test_passing_trouble_is_retried(stage: Arena, trouble: str) -> None:
    journal, outcome = await stage.ask("Who are you?", model=f"double/{trouble}*2")
    completed = check_answer(journal, outcome)
    assert len(stage.double.requests) == 3
    # What the broken attempts said belongs to messages that never completed.
    assert assembled(journal, completed["message"]) == outcome.text
    assert len(journal.of("message.completed")) == 1
    reported = journal.metered()
    assert reported["llm.requests"] == (3 if trouble == "empty" else 1)


@pytest.mark.parametrize("trouble", CODES)
async def test_lasting_trouble_fails_with_its_code_and_owes_nothing(stage: Arena, trouble: str) -> None:
    code, retryable, requests = CODES[trouble]
    journal, outcome = await stage.ask("Who are you?", model=f"double/{trouble}")
    assert (outcome.status, outcome.error_code, outcome.retryable) == ("failed", code, retryable)
    assert outcome.provider == f"double/{trouble}"
    assert len(stage.double.requests) == requests
    assert journal.of("message.completed") == []
    if trouble != "empty":
        assert journal.usage == []
        assert (outcome.totals.input_tokens, outcome.totals.output_tokens) == (0, 0)
    assert "sk-of-the-double" not in outcome.error_message


@pytest.mark.parametrize("trouble", ["broken", "unauthorized", "cut", "hang"])
async def test_another_model_answers_when_the_first_does_not(stage: Arena, trouble: str) -> None:
    journal, outcome = await stage.ask(
        "Who are you?", model=f"double/{trouble}", fallbacks=("nobody/x", "double/answer")
    )
    check_answer(journal, outcome)
    assert outcome.provider == "double/answer"
    assert {event.data.dimensions["model"] for event in journal.usage} == {"answer"}


async def test_unknown_models_fail_at_once(stage: Arena) -> None:
    for model, code in (("nobody/x", "unknown_provider"), ("local/gpt", "unknown_model")):
        _, outcome = await stage.ask(model=model)
        assert (outcome.error_code, outcome.retryable) == (code, False)


async def test_a_cut_answer_owes_what_the_provider_had_reported(stage: Arena) -> None:
    journal, outcome = await stage.ask("Who are you?", model="double/reported-cut*1")
    check_answer(journal, outcome)
    cut, whole = journal.of("usage")
    assert (cut["input"], cut["output"]) == (11, 2)
    assert journal.metered()["llm.tokens.input"] == 11 + whole["input"]
    assert journal.metered()["llm.requests"] == outcome.totals.requests == 2


@pytest.mark.parametrize(
    ("trouble", "code"), [("cut", "provider_unreachable"), ("clean-end", "provider_cut")]
)
async def test_anthropic_reports_the_input_before_it_breaks_off(
    stage: Arena, trouble: str, code: str
) -> None:
    journal, outcome = await stage.ask("Who are you?", model=f"claude/{trouble}")
    assert (outcome.status, outcome.error_code) == ("failed", code)
    assert journal.metered()["llm.tokens.input"] == 3 * 25
    assert journal.metered()["llm.requests"] == 3


@pytest.mark.parametrize("model", ["double/long", "claude/long"])
async def test_an_answer_that_ends_at_the_models_limit_says_so_after_a_takeover_too(
    stage: Arena, model: str
) -> None:
    journal, outcome = await stage.ask("Who are you?", model=model)
    assert check_answer(journal, outcome)["incomplete"] is True
    assert outcome.error_code == "max_output_tokens"
    assert stage.last is not None
    again = Notebook(earlier=journal)
    outcome = await stage.execute(resumed(stage.last, journal), again)
    assert check_answer(again, outcome)["incomplete"] is True
    assert outcome.error_code == "max_output_tokens"
    assert len(stage.double.requests) == 1
    journal, outcome = await stage.ask("Who are you?", model=model.replace("long", "answer"))
    assert "incomplete" not in check_answer(journal, outcome)
    assert outcome.error_code == ""


@pytest.mark.parametrize("model", ["double/spent", "double/thinking:spent", "claude/thinking:spent"])
async def test_an_answer_whose_limit_went_to_thoughts_is_empty_incomplete_and_asked_for_once(
    stage: Arena, model: str
) -> None:
    spec: dict[str, Any] = {"model": model, "fallbacks": ("double/answer",), "max_output_tokens": 2}
    journal, outcome = await stage.ask("Who are you?", **spec)
    assert check_answer(journal, outcome)["incomplete"] is True
    assert (outcome.text, outcome.error_code) == ("", "max_output_tokens")
    assert outcome.message_id, "it has no place in the conversation"
    assert stage.last is not None
    again = Notebook(earlier=journal)
    outcome = await stage.execute(resumed(stage.last, journal), again)
    assert check_answer(again, outcome)["incomplete"] is True
    assert len(stage.double.requests) == 1


async def test_an_empty_answer_is_not_said_to_the_model_again(stage: Arena) -> None:
    said: list[tuple[Role, str]] = [("user", "One"), ("assistant", ""), ("user", "Two"), ("assistant", "Aye")]
    history = tuple(StoredMessage(f"msg_{n}", role, words) for n, (role, words) in enumerate(said))
    _, outcome = await stage.ask("Three", model="double/told", history=history)
    told = [tuple(one) for one in json.loads(outcome.text)["messages"] if one[0] != "system"]
    assert told == [said[0], *said[2:], ("user", "Three")]


async def test_retry_after_is_waited_for_and_not_longer_than_we_like(stage: Arena) -> None:
    stage.double.retry_after = "1"
    began = time.monotonic()
    journal, outcome = await stage.ask("Who are you?", model="double/rate-limited*1")
    check_answer(journal, outcome)
    assert time.monotonic() - began >= 1
    stage.double.retry_after = "3600"
    _, outcome = await stage.ask("Who are you?", model="double/rate-limited")
    assert outcome.error_code == "provider_rate_limited"
    assert len(stage.double.requests) == 3


async def test_wall_time_ends_a_run(stage: Arena) -> None:
    journal, outcome = await stage.ask(model="double/slow=2000", seconds=3)
    assert (outcome.status, outcome.error_code) == ("failed", "limit_seconds")
    assert journal.of("message.delta")
    assert journal.usage == []


async def test_cancel_ends_a_run_and_its_connection(stage: Arena) -> None:
    journal = Notebook()
    running = asyncio.create_task(stage.execute(stage.context(model="double/slow=2000"), journal))
    await until(lambda: bool(journal.of("message.delta")))
    journal.cancelled.set()
    outcome = await running
    assert (outcome.status, outcome.message_id) == ("cancelled", "")
    assert journal.of("message.completed") == []
    await until(lambda: not stage.double.open)


async def test_what_a_provider_had_reported_of_a_cancelled_turn_counts(stage: Arena) -> None:
    journal = Notebook()
    running = asyncio.create_task(stage.execute(stage.context(model="claude/held"), journal))
    await until(lambda: bool(journal.of("message.delta")))
    journal.cancelled.set()
    outcome = await running
    metered = journal.metered()
    assert outcome.status == "cancelled"
    assert outcome.totals.requests == metered["llm.requests"] == 1
    assert outcome.totals.input_tokens == metered["llm.tokens.input"] + metered["llm.tokens.cached"] == 30


async def test_a_run_that_is_dropped_leaves_no_task(stage: Arena) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(5):
        running = asyncio.create_task(stage.execute(stage.context(model="double/slow=2000"), Notebook()))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await until(lambda: not stage.double.open and len(asyncio.all_tasks()) <= before)


async def test_tokens_are_passed_on_as_they_come(stage: Arena) -> None:
    journal, outcome = await stage.ask(model="double/slow=10")
    check_answer(journal, outcome)
    assert len(journal.of("message.delta")) == 10
