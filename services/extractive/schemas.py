"""Requests of the OpenAI API as far as this server reads them; other fields are ignored, as there."""

from typing import Any, Final, Literal

import msgspec

from services.common.body import decode
from services.common.errors import invalid
from services.extractive.answer import Message, ToolCall

MAX_TEXTS: Final = 2048
"""Of one request for vectors, as in the OpenAI API."""


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str = ""


class Call(msgspec.Struct, frozen=True):
    id: str
    function: Function


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str = ""


class Tool(msgspec.Struct, frozen=True):
    """Of chat completions (`function`) or of responses (`name`)."""

    type: str
    function: Function | None = None
    name: str = ""


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class Completion(msgspec.Struct, frozen=True):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None


class Item(msgspec.Struct, frozen=True):
    """An input item of a response: a message, a function call or its output."""

    type: str = "message"
    role: str = ""
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""


class ResponseRequest(msgspec.Struct, frozen=True):
    """`POST /v1/responses`."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = False
    tools: list[Tool] | None = None
    tool_choice: Any = None


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """`POST /v1/embeddings`. Arrays of token numbers are not taken: they are of another model's words."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    input_type: Literal["query", "passage"] | None = None
    """E5 has two kinds of vectors; without it all texts are queries, which suits comparing like with like."""

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def completion(value: object) -> Completion:
    """Raises: Problem 422."""
    asked = decode(value, Completion)
    if not asked.messages:
        raise invalid("/messages", "Give at least one message.")
    return asked


def response_request(value: object) -> ResponseRequest:
    """Raises: Problem 422."""
    asked = decode(value, ResponseRequest)
    if not asked.input:
        raise invalid("/input", "Give a text or at least one item.")
    return asked


def embedding_request(value: object, dimensions: int) -> EmbeddingRequest:
    """Raises: Problem 422."""
    asked = decode(value, EmbeddingRequest)
    if not 1 <= len(asked.texts) <= MAX_TEXTS or not all(asked.texts):
        raise invalid("/input", f"Give 1 to {MAX_TEXTS} texts, none of them empty.")
    if asked.dimensions not in (None, dimensions):
        raise invalid("/dimensions", f"Vectors have {dimensions} dimensions; leave it out.")
    return asked


def messages_of(asked: Completion | ResponseRequest) -> list[Message]:
    """What was said, in one shape for both APIs."""
    if isinstance(asked, Completion):
        return [
            Message(
                one.role,
                _text(one.content),
                tuple(
                    ToolCall(call.id, call.function.name, call.function.arguments)
                    for call in one.tool_calls or ()
                ),
                one.tool_call_id,
            )
            for one in asked.messages
        ]
    start = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*start, Message("user", asked.input)]
    return [*start, *(_message(item) for item in asked.input)]


def tools_of(asked: Completion | ResponseRequest) -> frozenset[str]:
    """Names of the functions that may be called."""
    if asked.tool_choice == "none":
        return frozenset()
    return frozenset(tool.function.name if tool.function else tool.name for tool in asked.tools or ())


def _message(item: Item) -> Message:
    if item.type == "function_call":
        return Message("assistant", calls=(ToolCall(item.call_id, item.name, item.arguments),))
    if item.type == "function_call_output":
        return Message("tool", _text(item.output), call_id=item.call_id)
    return Message(item.role, _text(item.content))


def _text(content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
