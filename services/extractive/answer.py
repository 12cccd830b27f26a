"""What `local-extractive` answers: a function of the messages and the tools on offer, nothing else.

It is no language model. It calls `knowledge_search` with the question, quotes the best sentences of
the passages that come back, each with its passage's marker, and hands sums to `calculator`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from core.ids import derived_id
from services.extractive.language import NOTHING_FOUND, language_of
from services.extractive.sentences import Passage, best

MODEL: Final = "local-extractive"
FINGERPRINT: Final = "local-extractive-1"
DESCRIPTION: Final = (
    "Offline stand-in for a language model: quotes the best sentences of retrieved passages, each with its marker. "
    "It generates no text of its own."
)
SEARCH: Final = "knowledge_search"
CALCULATOR: Final = "calculator"

_NUMBER = r"\d[\d,]*+(?:\.\d++)?%?"
# No part gives back what it took, and none begins within what an earlier one took: a text is read once.
_SUM: Final = re.compile(
    rf"(?:(?<![(\-\s])[(\-\s]++)?(?<![\d,.]){_NUMBER}[)\s]*+"
    rf"(?:(?:\*\*|//|[-+*/×÷^%−])[(\-\s]*+{_NUMBER}[)\s]*+)+"
)
_PIECE: Final = re.compile(
    r"\s*(?:[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)|\s+\Z"
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    """For role `tool`: the call that this answers."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Text, or calls of tools."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class _Marked(msgspec.Struct, frozen=True):
    marker: Annotated[int, msgspec.Meta(ge=1, le=9999)]
    text: str


class _Found(msgspec.Struct, frozen=True):
    passages: list[_Marked]


def pieces(text: str) -> list[str]:
    """The text in the pieces it is streamed and counted by: words with the space before, CJK characters."""
    return _PIECE.findall(text)


def reply(messages: Sequence[Message], tools: frozenset[str]) -> Reply:
    """The answer to a conversation; the same for the same input, ids too.

    Args:
        messages: oldest first.
        tools: names of the functions on offer.
    """
    asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    question = messages[asked].text.strip() if asked >= 0 else ""
    since = messages[asked + 1 :]
    results = _results(since)
    named = {name for name, _ in results}
    if CALCULATOR in tools and CALCULATOR not in named and (found := _SUM.search(question)):
        return _call(messages, CALCULATOR, {"expression": found.group().strip()})
    if values := [_value(content) for name, content in results if name == CALCULATOR]:
        return Reply("\n".join(values))
    if SEARCH in tools and SEARCH not in named and question:
        return _call(messages, SEARCH, {"query": question})
    passages = [passage for name, content in results if name == SEARCH for passage in _passages(content)]
    quoted = best(question, passages)
    if not quoted:
        return Reply(NOTHING_FOUND[language_of(question)])
    return Reply(" ".join(f"{sentence.text} [{sentence.marker}]" for sentence in quoted))


def _results(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """(tool, content) of the results since the question."""
    names = {call.id: call.name for message in messages for call in message.calls}
    return [(names.get(one.call_id, ""), one.text) for one in messages if one.role == "tool"]


def _call(messages: Sequence[Message], name: str, arguments: dict[str, str]) -> Reply:
    text = json.dumps(arguments, ensure_ascii=False)
    said = "\n".join(f"{message.role}:{message.text}" for message in messages)
    call_id = f"call_{derived_id(said, str(len(messages)), name, text).replace('-', '')[:24]}"
    return Reply(calls=(ToolCall(call_id, name, text),))


def _passages(content: str) -> list[Passage]:
    """Passages of a `knowledge_search` result: `{"passages": [{"marker": 1, "text": …}]}`."""
    try:
        found = msgspec.json.decode(content, type=_Found).passages
    except (msgspec.MsgspecError, RecursionError):
        return []
    return [Passage(one.marker, one.text) for one in found]


def _value(content: str) -> str:
    """What the calculator said, as `expression = value` where it says so."""
    try:
        found = json.loads(content)
        return f"{found['expression']} = {found['value']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return content
