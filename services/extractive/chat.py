"""A reply as `chat.completion`, whole or in pieces."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson

from core.ids import derived_id
from services.extractive.answer import FINGERPRINT, Message, Reply, pieces
from services.extractive.pace import paced
from services.extractive.schemas import Completion, messages_of

DONE = b"data: [DONE]\n\n"


def usage(messages: list[Message], answer: Reply) -> dict[str, Any]:
    """Counted as this server counts: by pieces of text."""
    said = sum(
        len(pieces(one.text)) + sum(len(pieces(call.arguments)) for call in one.calls) for one in messages
    )
    answered = len(pieces(answer.text)) + sum(len(pieces(call.arguments)) for call in answer.calls)
    return {"prompt_tokens": said, "completion_tokens": answered, "total_tokens": said + answered}


def whole(asked: Completion, answer: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.calls:
        message["tool_calls"] = [_call(index, call) for index, call in enumerate(answer.calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
    return {
        **_frame(asked, answer, "chat.completion"),
        "choices": [choice],
        "usage": usage(messages_of(asked), answer),
    }


async def stream(asked: Completion, answer: Reply, seconds: float) -> AsyncIterator[bytes]:
    """Server-sent events; `seconds` between two pieces of text."""
    frame = _frame(asked, answer, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**frame, "choices": [choice]})

    yield chunk({"role": "assistant", "content": "" if not answer.calls else None})
    async for delta in paced(_deltas(answer), seconds):
        yield chunk(delta)
    yield chunk({}, _finish(answer))
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield _event({**frame, "choices": [], "usage": usage(messages_of(asked), answer)})
    yield DONE


def _deltas(answer: Reply) -> Iterator[dict[str, Any]]:
    for piece in pieces(answer.text):
        yield {"content": piece}
    for index, call in enumerate(answer.calls):
        yield {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}]}  # fmt: skip
        for piece in pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _call(index: int, call: Any) -> dict[str, Any]:
    return {
        "index": index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _finish(answer: Reply) -> str:
    return "tool_calls" if answer.calls else "stop"


def _frame(asked: Completion, answer: Reply, kind: str) -> dict[str, Any]:
    said = "\n".join(f"{one.role}:{one.text}" for one in messages_of(asked))
    return {
        "id": f"chatcmpl-{derived_id(asked.model, said, answer.text).replace('-', '')}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": FINGERPRINT,
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
