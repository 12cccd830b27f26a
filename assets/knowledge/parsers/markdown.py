"""Markdown by its tokens: headings give the path, code and tables stay as they were written."""

from pathlib import Path
from typing import Any

from assets.knowledge.parsers.extract import CODE, HEADING, PARAGRAPH, TABLE, Extract, Writer
from assets.knowledge.parsers.html import read
from assets.knowledge.parsers.plain import decoded


def parse(path: Path) -> Extract:
    from markdown_it import MarkdownIt  # noqa: PLC0415

    tokens = MarkdownIt("commonmark").enable("table").parse(_without_front_matter(decoded(path.read_bytes())))
    walk = _Walk()
    for token in tokens:
        walk.token(token)
    return walk.writer.finish()


class _Walk:
    """Where in the document we are: in a heading, how deep in lists, in which row of a table."""

    def __init__(self) -> None:
        self.writer = Writer()
        self._level = 0
        self._marks: list[str] = []
        self._rows: list[list[str]] = []
        self._in_table = False

    def token(self, token: Any) -> None:
        name = token.type
        if name == "inline":
            self._inline(_text(token.children or []))
        elif name in {"heading_open", "heading_close"}:
            self._level = int(token.tag[1:]) if token.nesting > 0 else 0
        elif name in {"fence", "code_block"}:
            self.writer.add(token.content, CODE)
        elif name == "html_block":
            read(token.content, self.writer)
        elif "list" in name:
            self._list(token)
        elif name == "table_open":
            self._rows, self._in_table = [], True
        elif name == "tr_open":
            self._rows.append([])
        elif name == "table_close":
            self._in_table = False
            self.writer.add("\n".join(" | ".join(row) for row in self._rows), TABLE)

    def _list(self, token: Any) -> None:
        if token.type == "list_item_open":
            self._marks[-1] = f"{token.info}. " if token.info else "- "
        elif token.type.endswith("list_open"):
            self._marks.append("")
        elif token.type.endswith("list_close"):
            self._marks.pop()

    def _inline(self, text: str) -> None:
        if self._in_table:
            self._rows[-1].append(text.replace("\n", " "))
            return
        mark = self._marks[-1] if self._marks else ""
        self.writer.add(mark + text, HEADING if self._level else PARAGRAPH, self._level)
        if self._marks:
            self._marks[-1] = ""


def _without_front_matter(text: str) -> str:
    """Settings of a site generator between two `---` lines at the start."""
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return text[end + 5 :]
    return text


def _text(children: list[Any]) -> str:
    parts = []
    for child in children:
        if child.type in {"text", "code_inline", "image"}:
            parts.append(child.content)
        elif child.type in {"softbreak", "hardbreak"}:
            parts.append("\n")
    return "".join(parts)
