"""A reply as a `response` of the Responses API, whole or as its events."""

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from core.ids import derived_id
from services.extractive.answer import Reply, ToolCall, pieces
from services.extractive.chat import usage
from services.extractive.pace import paced
from services.extractive.schemas import ResponseRequest, messages_of


def whole(asked: ResponseRequest, answer: Reply) -> dict[str, Any]:
    """The finished response."""
    return _frame(asked, answer, "completed", _items(asked, answer))


async def stream(asked: ResponseRequest, answer: Reply, seconds: float) -> AsyncIterator[bytes]:
    """Events with `sequence_number` from 0; `seconds` between two pieces of text."""
    number = -1

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        data = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    yield event("response.created", response=_frame(asked, answer, "in_progress", []))
    yield event("response.in_progress", response=_frame(asked, answer, "in_progress", []))
    for index, item in enumerate(_items(asked, answer)):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "function_call":
            yield event(
                "response.output_item.added",
                output_index=index,
                item={**item, "arguments": "", "status": "in_progress"},
            )
            async for piece in paced(pieces(item["arguments"]), seconds):
                yield event("response.function_call_arguments.delta", **at, delta=piece)
            yield event(
                "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
            )
        else:
            at["content_index"] = 0
            part = item["content"][0]
            yield event(
                "response.output_item.added",
                output_index=index,
                item={**item, "content": [], "status": "in_progress"},
            )
            yield event("response.content_part.added", **at, part={**part, "text": ""})
            async for piece in paced(pieces(answer.text), seconds):
                yield event("response.output_text.delta", **at, delta=piece, logprobs=[])
            yield event("response.output_text.done", **at, text=answer.text, logprobs=[])
            yield event("response.content_part.done", **at, part=part)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=whole(asked, answer))


def _items(asked: ResponseRequest, answer: Reply) -> list[dict[str, Any]]:
    if answer.calls:
        return [_call_item(call) for call in answer.calls]
    part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    item_id = f"msg_{_identity(asked, answer)}"
    return [{"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}]


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id.removeprefix('call_')}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _frame(asked: ResponseRequest, answer: Reply, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    counted = usage(messages_of(asked), answer)
    return {
        "id": f"resp_{_identity(asked, answer)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": asked.model,
        "output": items,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None
        if status != "completed"
        else {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        },
    }


def _identity(asked: ResponseRequest, answer: Reply) -> str:
    said = "\n".join(f"{one.role}:{one.text}" for one in messages_of(asked))
    return derived_id(asked.model, said, answer.text).replace("-", "")
