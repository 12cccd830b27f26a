"""From `[n]` in an answer to places in documents that were read again and found equal."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import islice
from typing import Final

from core.contracts.run_events import Citation
from services.agents.model import RunContext
from services.agents.tools import Passage
from services.agents.tools.memory import MemoryClient

MAX_CITATIONS: Final = 50
_LOOKED_AT: Final = 200
"""Statements with a marker that are compared with their passages; an answer may hold a hundred thousand."""
_STATEMENT: Final = 4000
"""Characters before a marker that may be its statement."""
_MARKS: Final = re.compile(r"\[(\d{1,4}(?:\s*[,，、]\s*\d{1,4})*)\]")
_SENTENCE: Final = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？；])[”’」』）]*|\n+")
_CJK: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SPACE: Final = re.compile(r"\s")
_QUOTES: Final = "\"'“”‘’「」 \n\t"
_SHORTEST: Final = 12
"""Characters of a quotation that is looked for by itself; a shorter one stands in too many places."""
_COMPARED: Final = 600
"""Characters of a statement that are compared with a passage one by one."""


def claims(text: str, passages: Mapping[int, Passage]) -> list[Citation]:
    """What the answer says it quotes, in order, each place once; markers without a passage are nobody's.

    The quote is the part of the statement before the marker that stands in the passage word for word
    (line breaks and spaces aside), as it stands there; the whole passage where there is no such part.
    """
    found: dict[tuple[str, int, int, int], Citation] = {}
    for said, passage in islice(_pairs(text, passages), _LOOKED_AT):
        if len(found) == MAX_CITATIONS:
            break
        begin, end = _place(said, passage.text)
        key = (passage.document, passage.version, passage.start + begin, passage.start + end)
        found.setdefault(
            key,
            Citation(
                document=passage.document,
                version=passage.version,
                start=passage.start + begin,
                end=passage.start + end,
                quote=passage.text[begin:end],
                page=passage.page,
                name=passage.name,
                marker=passage.marker,
            ),
        )
    return list(found.values())


def _pairs(text: str, passages: Mapping[int, Passage]) -> Iterator[tuple[str, Passage]]:
    """What is said and the passage that it names, each pair once."""
    start, said = 0, ""
    told: set[int] = set()
    for match in _MARKS.finditer(text):
        # `… [1][2]` says one thing of two passages.
        if text[start : match.start()].strip():
            said, told = text[max(start, match.start() - _STATEMENT) : match.start()], set()
        start = match.end()
        for digits in re.findall(r"\d+", match.group(1)):
            number = int(digits)
            if number in passages and number not in told:
                told.add(number)
                yield said, passages[number]


async def verified(run: RunContext, memory: MemoryClient, wanted: list[Citation]) -> tuple[Citation, ...]:
    """Those whose quote is what the document says at that place.

    Raises:
        MemoryAwayError: it cannot be checked, so nothing may be cited.
    """
    texts = await asyncio.gather(
        *(memory.retrieve(run, one.document, one.version, one.start, one.end) for one in wanted)
    )
    return tuple(one for one, text in zip(wanted, texts, strict=True) if text == one.quote)


def _place(statement: str, passage: str) -> tuple[int, int]:
    """Where the statement stands in the passage; all of it where it does not."""
    sentences = [piece.strip() for piece in _SENTENCE.split(statement) if piece.strip()]
    for candidate in (statement, *reversed(sentences)):
        words = candidate.strip(_QUOTES).split()
        if _weight("".join(words)) < _SHORTEST or len("".join(words)) > len(passage):
            continue
        match = re.search(r"\s+".join(map(re.escape, words)), passage)
        if match is not None:
            return match.span()
    return _longest(statement, passage) or (0, len(passage))


def _longest(statement: str, passage: str) -> tuple[int, int] | None:
    """The longest run of whole words that both have: a quotation behind words of the answer's own."""
    said, there = " ".join(statement.split())[-_COMPARED:], _SPACE.sub(" ", passage)
    found = SequenceMatcher(None, said, there, autojunk=False).find_longest_match()
    start, end = found.b, found.b + found.size
    while start < end and (there[start] == " " or _inside_word(there, start)):
        start += 1
    while end > start and (there[end - 1] == " " or _inside_word(there, end)):
        end -= 1
    return (start, end) if _weight(there[start:end]) >= _SHORTEST else None


def _inside_word(text: str, position: int) -> bool:
    """True where a word of a script with spaces stands on both sides."""
    around = text[max(0, position - 1) : position + 1]
    return 0 < position < len(text) and around.isalnum() and not _CJK.search(around)


def _weight(text: str) -> int:
    """Characters; one of a script without spaces says as much as two."""
    return len(text) + len(_CJK.findall(text))
