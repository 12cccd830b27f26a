"""What a parser gives: one text, and blocks that say where in it headings, paragraphs and tables stand."""

import re
from dataclasses import dataclass, field
from typing import Final

MOST_CHARACTERS: Final = 5_000_000
"""About 2,000 printed pages. What is longer is data rather than a document."""
HEADING, PARAGRAPH, TABLE, CODE = "heading", "paragraph", "table", "code"
_UNWANTED: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")
_BLANKS: Final = re.compile(r"[^\S\n]+")
_LINES: Final = re.compile(r" ?\n ?(?:\n ?)*")


class RefusedError(Exception):
    """The file will never be read, however often it is tried.

    `state` is the state its version ends in, the message is for the person who uploaded it.
    """

    def __init__(self, reason: str, *, state: str = "failed") -> None:
        super().__init__(reason)
        self.state = state


@dataclass(frozen=True, slots=True)
class Block:
    """[start, end) in code points of the text. `level` of a heading from 1; `page` from 1, 0 without pages."""

    start: int
    end: int
    kind: str
    level: int = 0
    page: int = 0


@dataclass(frozen=True, slots=True)
class Extract:
    text: str
    blocks: list[Block]
    pages: int = 0


@dataclass(slots=True)
class Writer:
    """Puts the text together: blocks are parted by an empty line, whitespace inside is plain."""

    page: int = 0
    _parts: list[str] = field(default_factory=list)
    _blocks: list[Block] = field(default_factory=list)
    _length: int = 0

    def add(self, text: str, kind: str = PARAGRAPH, level: int = 0) -> None:
        """Add a block; nothing where the text is blank.

        Raises:
            RefusedError: the document has grown too long.
        """
        text = clean(text, lines=kind in {TABLE, CODE})
        if not text:
            return
        if self._parts:
            self._parts.append("\n\n")
            self._length += 2
        self._blocks.append(Block(self._length, self._length + len(text), kind, level, self.page))
        self._parts.append(text)
        self._length += len(text)
        if self._length > MOST_CHARACTERS:
            raise RefusedError(f"the text is longer than {MOST_CHARACTERS:,} characters; divide the document")

    def finish(self, pages: int = 0) -> Extract:
        return Extract("".join(self._parts), self._blocks, pages)


def clean(text: str, *, lines: bool = False) -> str:
    """Without control characters and needless blanks; `lines` keeps indentation inside (code, tables)."""
    text = _UNWANTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n"))
    if lines:
        return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return _LINES.sub("\n", _BLANKS.sub(" ", text)).strip()
