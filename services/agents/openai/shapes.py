"""Documents and stream events of OpenAI's interface, made from runs and their events."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from core.contracts.agents import AgentEvent
from core.contracts.run_events import Totals
from services.agents.decisions import Approval
from services.agents.model import INCOMPLETE
from services.agents.openai.runs import Said
from services.agents.store import Message, Run
from services.common import openai_errors
from services.common.errors import Problem

DONE: Final = b"data: [DONE]\n\n"
ALIVE: Final = b": alive\n\n"
_STATUS: Final = {
    "queued": "queued", "running": "in_progress", "waiting": "incomplete", "completed": "completed",
    "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip


def response_id(run_id: str) -> str:
    return "resp_" + run_id.removeprefix("run_")


def run_id(response: str) -> str:
    """The run of a response; what is no response id names no run."""
    return "run_" + response.removeprefix("resp_") if response.startswith("resp_") else ""


def failure(one: AgentEvent) -> Problem:
    """The problem that a run ended with. OpenAI's clients send again after every 409 and 5xx that does not
    say otherwise: a run at its limits would be paid three times."""
    data, final = one.data, {"x-should-retry": "false"}
    if one.type == "run.cancelled":
        return Problem(
            409, "run_cancelled", "Cancelled", "The run was cancelled before it had an answer.", headers=final
        )
    retryable = bool(data.get("retryable"))
    return Problem(
        503 if retryable else 502,
        str(data.get("code") or "failed"),
        "The run failed",
        str(data.get("message") or ""),
        headers=None if retryable else final,
    )


def asked(run_id: str, said: Said) -> Problem:
    """The problem of an answer that did not come because its run waits for a person."""
    data = said.asks.data if said.asks else {}
    return Problem(
        409,
        "approval_required",
        "A person must decide",
        f"The run waits until a person allows {data.get('name')} or not: POST "
        f"/api/v1/runs/{run_id}/approvals/{data.get('call')} with `decision` and `round` {data.get('round')}. It then goes on by itself; read its answer from "
        "its conversation, and do not send this again.",
        headers={"x-should-retry": "false"},
    )


def chat_usage(usage: Totals) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens": usage.output_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.tokens,
    }


class Chat:
    """A chat completion of an agent, whole or in chunks."""

    def __init__(self, run_id: str, model: str, created: int, *, include_usage: bool) -> None:
        self._run_id = run_id
        self._id, self._model, self._created = f"chatcmpl-{run_id}", model, created
        self._include_usage = include_usage

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def end(self, said: Said) -> bytes:
        """Everything behind the text."""
        if said.done is None or said.done.type != "run.completed":
            problem = self.problem(said)
            return sse(openai_errors.body(problem)) + DONE
        last = self._chunk({}, _finish(said))
        if self._include_usage:
            usage = chat_usage(said.usage)
            last += sse(orjson.dumps({**self._frame("chat.completion.chunk"), "choices": [], "usage": usage}))
        return last + DONE

    def problem(self, said: Said) -> Problem:
        """Why there is no answer."""
        if said.done is not None:
            return failure(said.done)
        if said.asks is not None:
            return asked(self._run_id, said)
        return Problem(502, "stream_lost", "Lost", "The stream was lost.")

    def whole(self, said: Said) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.text, "citations": said.citations}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(said)}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": chat_usage(said.usage)}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse(orjson.dumps({**self._frame("chat.completion.chunk"), "choices": [choice]}))


def _finish(said: Said) -> str:
    return "length" if said.incomplete else "stop"


def sse(data: bytes, kind: str = "") -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data) if kind else b"data: %b\n\n" % data


class Responses:
    """The events of a run as those of a response, one for one: `sequence_number` is the event's seq, so
    that a client goes on behind it on any replica."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._said = Said()
        self._index = 0
        self._calls: dict[str, tuple[int, dict[str, Any]]] = {}

    def of(self, one: AgentEvent) -> bytes:
        """The event that stands for `one`; all before it must have been seen."""
        added = self._said.take(one)
        kind, fields = self._event(one, added)
        return sse(orjson.dumps({"type": kind, "sequence_number": one.seq, **fields}), kind)

    def waiting(self, seq: int) -> bytes:
        """What ends a stream of a run that waits for a person; it is no event of the run and has no number of
        its own, so that a client goes on behind `seq`."""
        kind, now = "response.incomplete", self._now("waiting")
        return sse(orjson.dumps({"type": kind, "sequence_number": seq, "response": now}), kind)

    def _event(self, one: AgentEvent, added: str) -> tuple[str, dict[str, Any]]:  # noqa: PLR0911, PLR0912 - a table
        data, place = one.data, {"output_index": 0, "content_index": 0}
        item = _item_id(self._run)
        match one.type:
            case "run.queued":
                return "response.created", {"response": self._now("queued")}
            case "message.delta":
                return "response.output_text.delta", {
                    **place,
                    "item_id": item,
                    "delta": added,
                    "logprobs": [],
                }
            case "message.completed":
                if added:  # what no delta said, so that deltas make the whole text
                    return "response.output_text.delta", {
                        **place,
                        "item_id": item,
                        "delta": added,
                        "logprobs": [],
                    }
                text = {"text": self._said.text, "logprobs": []}
                return "response.output_text.done", {**place, "item_id": item, **text}
            case "thinking.delta":
                part = {"item_id": data["item"], "output_index": 0, "summary_index": 0}
                return "response.reasoning_summary_text.delta", {**part, "delta": data["text"]}
            case "thinking.completed":
                part = {"item_id": data["item"], "output_index": 0, "summary_index": 0}
                return "response.reasoning_summary_text.done", {**part, "text": data["text"]}
            case "tool_call.started":
                call = {
                    "type": "function_call",
                    "id": data["call"],
                    "call_id": data["call"],
                    "name": data["name"],
                }
                self._index += 1
                self._calls[data["call"]] = (self._index, {**call, "arguments": "", "status": "in_progress"})
                return "response.output_item.added", self._item(data["call"])
            case "tool_call.delta":
                part = {"item_id": data["call"], "output_index": self._item(data["call"])["output_index"]}
                return "response.function_call_arguments.delta", {**part, "delta": data["fragment"]}
            case "tool_call.completed":
                self._item(data["call"])["item"]["arguments"] = data["arguments"]
                part = {"item_id": data["call"], "output_index": self._item(data["call"])["output_index"]}
                part |= {"arguments": data["arguments"], "name": data["name"]}
                return "response.function_call_arguments.done", part
            case "approval.requested":
                self._index += 1
                asks = _requested(data)
                self._calls[asks["id"]] = (self._index, asks)
                return "response.output_item.added", self._item(asks["id"])
            case "approval.resolved":
                return "response.output_item.done", self._item(_approval_id(data["call"], data["round"]))
            case "tool_result":
                self._item(data["call"])["item"]["status"] = (
                    "completed" if data["status"] == "ok" else "incomplete"
                )
                return "response.output_item.done", self._item(data["call"])
            case "run.completed":
                status = "incomplete" if self._said.incomplete else "completed"
                return f"response.{status}", {"response": self._now(status)}
            case "run.failed":
                problem = {"code": data["code"], "message": data["message"]}
                return "response.failed", {"response": {**self._now("failed"), "error": problem}}
            case "run.cancelled":
                return "response.incomplete", {"response": self._now("cancelled")}
            case _:
                return "response.in_progress", {"response": self._now("in_progress")}

    def _item(self, call: str) -> dict[str, Any]:
        index, item = self._calls.get(
            call, (0, {"type": "function_call", "id": call, "call_id": call, "name": ""})
        )
        return {"output_index": index, "item": item}

    def _now(self, status: str) -> dict[str, Any]:
        ended = status in {"completed", "incomplete", "failed", "cancelled"}
        usage = self._said.usage if ended else None
        waiting = self._said.asks.data if status == "waiting" and self._said.asks else None
        asks = waiting and _requested(waiting)
        said, cut = self._said, status == "incomplete"
        status = _STATUS.get(status, status)
        return _response(self._run, status, said.text, said.citations, usage, asks, incomplete=cut)


def response(run: Run, answer: Message | None, question: Approval | None) -> dict[str, Any]:
    """The response of a run as it is now; `question` is what it waits for."""
    status = "incomplete" if run.incomplete else _STATUS[run.status]
    text = answer.text if answer else ""
    citations = (
        [orjson.loads(orjson.dumps(one, default=_plain)) for one in answer.citations] if answer else []
    )
    usage = run.totals if run.ended else None
    asks = (
        _approval_item(question.call, question.round, question.tool, question.arguments) if question else None
    )
    made = _response(run, status, text, citations, usage, asks, incomplete=run.incomplete)
    if run.status == "failed":
        made["error"] = {"code": run.error_code, "message": run.error_message}
    return made


def _approval_id(call: str, round: int) -> str:
    return f"appr_{call}_{round}"


def _requested(data: Mapping[str, Any]) -> dict[str, Any]:
    """The item of an event `approval.requested`."""
    return _approval_item(data["call"], data["round"], data["name"], data["arguments"])


def _approval_item(call: str, round: int, name: str, arguments: str) -> dict[str, Any]:
    """In OpenAI's form of a tool call that waits for a person."""
    return {
        "type": "mcp_approval_request",
        "id": _approval_id(call, round),
        "call_id": call,
        "round": round,
        "name": name,
        "arguments": arguments,
        "server_label": "headrace",
    }


def _item_id(run: Run) -> str:
    """Of the answer: the same from the first event on, before there is a message."""
    return f"msg_{run.id.removeprefix('run_')}"


def _response(
    run: Run,
    status: str,
    text: str,
    citations: list[dict[str, Any]],
    usage: Totals | None,
    waits_for: dict[str, Any] | None = None,
    *,
    incomplete: bool = False,
) -> dict[str, Any]:
    own = run.metadata.get("openai", {})
    reason = "approval_required" if waits_for is not None else INCOMPLETE if incomplete else None
    item = {
        "id": _item_id(run),
        "type": "message",
        "role": "assistant",
        "status": "completed" if status == "completed" else "in_progress" if usage is None else "incomplete",
        "content": [
            {"type": "output_text", "text": text, "annotations": [], "logprobs": [], "citations": citations}
        ],
    }
    return {
        "id": response_id(run.id),
        "object": "response",
        "created_at": _seconds(run.created_at),
        "status": status,
        "background": bool(own.get("background")),
        "error": None,
        "incomplete_details": reason and {"reason": reason},
        "instructions": None,
        "max_output_tokens": run.spec.max_output_tokens if run.spec else None,
        "metadata": {key: value for key, value in run.metadata.items() if key != "openai"},
        "model": own.get("model") or (run.spec.model if run.spec else ""),
        # Always there, so that a client that builds the text from deltas has where to put them.
        "output": [item] if waits_for is None else [item, waits_for],
        "parallel_tool_calls": True,
        "previous_response_id": own.get("previous"),
        "store": True,
        "temperature": run.spec.temperature if run.spec else None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None if usage is None else _usage(usage),
    }


def _usage(usage: Totals) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.tokens,
    }


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def _plain(value: Any) -> Any:
    return {name: getattr(value, name) for name in value.__struct_fields__}
