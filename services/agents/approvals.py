"""Calls that a person must allow first: when, what is asked, and what the model hears of a refusal."""

import json
from datetime import timedelta
from typing import Any, Final

from core.clock import now
from core.contracts.run_events import Reason
from services.agents.model import AgentSpec, Answered, Question
from services.agents.speech import storable
from services.agents.tools import Output, Tool

KEEP: Final = timedelta(hours=24)
"""How long a question stands; then the run goes on without the call."""


class WaitError(Exception):
    """The run must wait for an answer."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.call)
        self.question = question


def why(spec: AgentSpec, tool: Tool, *, interrupted: bool) -> Reason | None:
    """Why a person must allow a call of `tool`; None where nobody needs to.

    Args:
        interrupted: it began once, and nobody saw its end. The agent cannot choose that this is repeated.
    """
    if interrupted:
        return "interrupted"
    wanted = spec.approval.get(tool.name)
    if wanted == "always":
        return "policy"
    return "unsafe" if tool.side_effect == "unsafe" and wanted is None else None


def question(call: str, round: int, tool: Tool, arguments: dict[str, Any], reason: Reason) -> Question:
    return Question(
        call=call,
        round=round,
        tool=tool.name,
        arguments=storable(json.dumps(arguments, ensure_ascii=False)),
        reason=reason,
        expires=now() + KEEP,
    )


def not_allowed(answer: Answered, reason: Reason) -> Output:
    """What the model reads in place of a result."""
    who = "nobody answered in time" if answer.decision == "expired" else "a person did not allow it"
    said = f' They wrote: "{answer.note}".' if answer.note else ""
    if reason == "interrupted":
        return Output(
            "It is not known whether this call happened, because the instance that made it was lost. It was not "
            f"repeated: {who}.{said} Go on without its result and say so."
        )
    return Output(f"This call was not made: {who}.{said} Go on without its result and say so.")
