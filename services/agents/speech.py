"""One model turn as events of the run, while it streams."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_core import to_json

from core.ids import derived_id, new_id
from services.agents.journal import Journal
from services.agents.model import RunContext
from services.agents.tools import Tool

_NEVER: Final = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """Half surrogates and U+0000, which nothing stores, as U+FFFD; as many code points as before."""
    return _NEVER.sub("\ufffd", text)


def make_storable(response: ModelResponse) -> None:
    """Replace, in place, what nothing stores: a response is saved, and goes back to the model with the next request."""
    for part in response.parts:
        if isinstance(part, TextPart | ThinkingPart):
            part.content = storable(part.content)
        elif isinstance(part, ToolCallPart) and isinstance(part.args, str):
            part.args = storable(part.args)


def size_of(messages: Iterable[ModelMessage]) -> int:
    """Bytes (UTF-8) of what they say, calls and results of tools too."""
    said = [
        part.args if isinstance(part, ToolCallPart) else getattr(part, "content", None)
        for message in messages
        for part in message.parts
    ]
    return sum(
        len(one.encode(errors="replace")) if isinstance(one, str) else len(to_json(one))
        for one in said
        if one
    )


def text_of(response: ModelResponse) -> str:
    """What the deltas of its message make: the library's own `text` puts blank lines where a thought stood."""
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


class Speech:
    """Events of one attempt at one turn. A new attempt is a new message: nobody joins two halves.

    Args:
        attempt: counts the attempts of this execution at this turn.
    """

    def __init__(
        self, run: RunContext, journal: Journal, tools: Mapping[str, Tool], turn: int, attempt: int
    ) -> None:
        self._run, self._journal, self._tools = run, journal, tools
        self._turn, self._attempt = turn, attempt
        self.message = new_id("msg")
        self.text = ""
        self.calls: dict[str, str] = {}
        """The provider's id of each tool call to ours."""
        self.size = 0
        """Bytes (UTF-8) of all that came: text, thoughts, arguments."""
        self._thinking: dict[int, tuple[str, int]] = {}

    def on(self, event: ModelResponseStreamEvent) -> None:
        """Note what an event of the stream adds."""
        match event:
            case (
                PartStartEvent(part=TextPart(content=text))
                | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
            ):
                self._say(text)
            case PartStartEvent(index=index, part=ThinkingPart(content=text)):
                self._thinking[index] = (new_id("thk"), 0)
                self._think(index, text)
            case PartDeltaEvent(index=index, delta=ThinkingPartDelta(content_delta=text)):
                self._think(index, text or "")
            case PartEndEvent(index=index, part=ThinkingPart(content=text)):
                self._journal.emit(
                    "thinking.completed", {"item": self._thinking[index][0], "text": storable(text)}
                )
            case PartStartEvent(part=ToolCallPart() as call):
                self._start(call)
            case PartDeltaEvent(delta=ToolCallPartDelta(args_delta=arguments, tool_call_id=call_id)) if (
                call_id
            ):
                self._argue(call_id, arguments)
            case PartEndEvent(part=ToolCallPart() as call):
                said = call.args if isinstance(call.args, str) else call.args_as_json_str()
                data = {
                    "call": self.call(call.tool_call_id),
                    "name": call.tool_name,
                    "arguments": storable(said),
                }
                self._journal.emit("tool_call.completed", data)

    def call(self, provider_id: str) -> str:
        """Our id of a tool call: the provider's may come again in another turn."""
        if provider_id not in self.calls:
            parts = (self._run.run_id, str(self._run.epoch), str(self._turn), str(self._attempt), provider_id)
            self.calls[provider_id] = f"tcl_{derived_id(*parts)}"
        return self.calls[provider_id]

    def _say(self, text: str) -> None:
        if text:
            text = storable(text)
            self._journal.emit(
                "message.delta", {"message": self.message, "offset": len(self.text), "text": text}
            )
            self.text += text
            self.size += len(text.encode())

    def _think(self, index: int, text: str) -> None:
        if text:
            item, offset = self._thinking[index]
            text = storable(text)
            self._journal.emit("thinking.delta", {"item": item, "offset": offset, "text": text})
            self._thinking[index] = (item, offset + len(text))
            self.size += len(text.encode())

    def _start(self, call: ToolCallPart) -> None:
        tool = self._tools.get(call.tool_name)
        known = (
            {"origin": tool.origin, "side_effect": tool.side_effect}
            if tool
            else {"origin": "unknown", "side_effect": ""}
        )
        self._journal.emit(
            "tool_call.started", {"call": self.call(call.tool_call_id), "name": call.tool_name, **known}
        )
        self._argue(call.tool_call_id, call.args)

    def _argue(self, provider_id: str, arguments: str | dict[str, object] | None) -> None:
        if arguments:
            fragment = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            data = {"call": self.call(provider_id), "fragment": storable(fragment)}
            self.size += len(data["fragment"].encode())
            self._journal.emit("tool_call.delta", data)
