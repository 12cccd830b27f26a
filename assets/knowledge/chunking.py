"""Divides a text into passages: by its structure first, then by sentences, never above the model's tokens.

Pure. A passage is always text[start:end]: what is quoted from it stands in the source, to the character.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from assets.knowledge.parsers.extract import CODE, HEADING, TABLE, Block, Extract

VERSION: Final = "1"
"""Part of the names of derived chunks: raise it when another division is made."""
MOST: Final = 480
"""Tokens of a passage with its headings, of the 512 that the model reads."""
AIM: Final = 280
"""Tokens above which a passage ends at the next sentence: short enough to be about one thing."""
LEAST: Final = 48
"""Tokens below which a passage goes on past a heading: a title alone is found but answers nothing."""
_PREFIX: Final = 10
"""Tokens of the model's prefix and ends, and what standing alone may add."""
_PATH: Final = 160
"""Characters of the heading path that are embedded along."""
_SOFT: Final = " \n\t,，、:：|"
_SENTENCE: Final = re.compile(
    r"[。！？!?；;…]+[”’」』》）)\]】\"']*"
    r"|(?<=[\w\)\]\"'”’])\.+[\"'”’)\]]*(?=\s)"
    r"|\n"
)
_LINE: Final = re.compile(r"\n")


class Counter(Protocol):
    """What is asked of the embedding model (`core.embedding`)."""

    def offsets(self, text: str) -> Any: ...
    def tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """[start, end) in code points of the text; `headings` from the outermost; `page` from 1, 0 without pages."""

    number: int
    start: int
    end: int
    page: int
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is divided only where it is too long itself: a sentence, a line of a table, a title."""

    start: int
    end: int
    tokens: int
    page: int
    headings: tuple[str, ...]
    """Those it stands under; a title does not stand under itself."""
    title: bool


def embedded_text(text: str, passage: Passage) -> str:
    """What the model reads of a passage: the headings it stands under, then itself."""
    body = text[passage.start : passage.end]
    headings = passage.headings
    if headings and body.startswith(headings[-1]):
        headings = headings[:-1]
    path = heading_path(headings)
    return f"{path}\n{body}" if path else body


def heading_path(headings: Sequence[str]) -> str:
    """The innermost part of the path, as much of it as is embedded along."""
    return " › ".join(headings)[-_PATH:].lstrip()


def divide(extract: Extract, model: Counter) -> list[Passage]:
    """Passages in the order of the text, without overlap; only blanks are between them."""
    groups: list[list[_Piece]] = []
    tokens = 0
    for piece in _pieces(extract, model):
        last = groups[-1] if groups else []
        full = tokens + piece.tokens > _room(last) or tokens >= AIM
        if not last or full or piece.page != last[-1].page or (piece.title and tokens >= LEAST):
            groups.append([])
            tokens = 0
        groups[-1].append(piece)
        tokens += piece.tokens
    passages: list[Passage] = []
    for group in groups:
        passages.extend(_fitting(extract.text, group, model))
    return [replace(passage, number=number) for number, passage in enumerate(passages)]


def _room(group: Sequence[_Piece]) -> int:
    """Tokens that a group may have beside the path of headings, of which a character gives at most one."""
    return MOST - _PREFIX - (len(heading_path(_headings(group))) if group else 0)


def _headings(group: Sequence[_Piece]) -> tuple[str, ...]:
    """Where a group stands: under the headings of its first text that is not itself a title."""
    return next((piece.headings for piece in group if not piece.title), group[0].headings)


def _fitting(text: str, group: Sequence[_Piece], model: Counter) -> Iterator[Passage]:
    """The group as a passage, or as several where the model counts more tokens than its parts had."""
    start, end = group[0].start, group[-1].end
    passage = Passage(0, start, end, group[0].page, _headings(group))
    if model.tokens([embedded_text(text, passage)])[0] <= MOST:
        yield passage
    elif len(group) > 1:
        middle = len(group) // 2
        yield from _fitting(text, group[:middle], model)
        yield from _fitting(text, group[middle:], model)
    else:
        middle = (start + end) // 2
        for low, high in (_stripped(text, start, middle), _stripped(text, middle, end)):
            if low < high:
                yield from _fitting(text, [replace(group[0], start=low, end=high)], model)


def _pieces(extract: Extract, model: Counter) -> Iterator[_Piece]:
    path: list[tuple[int, str]] = []
    for block in extract.blocks:
        title = block.kind == HEADING
        if title:
            path = [one for one in path if one[0] < block.level]
        headings = tuple(heading for _, heading in path)
        body = extract.text[block.start : block.end]
        begins = [block.start + int(start) for start, _ in model.offsets(body)]
        whole = title or len(begins) <= LEAST
        spans = _spans(extract.text, block, None if whole else _SENTENCE)
        for start, end in spans:
            for low, high, tokens in _short(extract.text, start, end, begins):
                yield _Piece(low, high, tokens, block.page, headings, title)
        if title:
            path.append((block.level, " ".join(body.split())[:_PATH]))


def _spans(text: str, block: Block, ends: "re.Pattern[str] | None") -> list[tuple[int, int]]:
    """[start, end) of each sentence or, in tables and code, line; without `ends`, of the whole block."""
    found, start = [], block.start
    if ends is not None:
        for match in (_LINE if block.kind in {TABLE, CODE} else ends).finditer(text, block.start, block.end):
            found.append(_stripped(text, start, match.end()))
            start = match.end()
    found.append(_stripped(text, start, block.end))
    return [(low, high) for low, high in found if low < high]


def _short(text: str, start: int, end: int, begins: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, end, tokens) of the parts of a span that have at most `AIM` tokens, cut at a blank or comma if there is
    one. `begins`: where the block's tokens begin, ascending."""
    while start < end:
        first, last = bisect_left(begins, start), bisect_left(begins, end)
        tokens = last - first + 1
        if tokens <= AIM:
            yield start, end, tokens
            return
        cut = begins[first + AIM]
        for at in range(cut, begins[first + AIM // 2], -1):
            if text[at - 1] in _SOFT:
                cut = at
                break
        low, high = _stripped(text, start, max(cut, start + 1))
        if low < high:
            yield low, high, AIM
        start = _stripped(text, max(cut, start + 1), end)[0]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without blanks at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
