"""HTML through lexbor: what a reader sees, block by block; scripts and styles are nothing to read."""

import re
from pathlib import Path
from typing import Any, Final

from assets.knowledge.parsers.extract import CODE, HEADING, PARAGRAPH, TABLE, Extract, Writer
from assets.knowledge.parsers.plain import decoded

_UNREAD: Final = ["script", "style", "noscript", "template", "svg", "iframe", "object", "select", "button"]
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_BLOCKS: Final = frozenset(
    """address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form header hr
    li main nav ol p section summary ul html""".split()  # noqa: SIM905
)
_DEEPEST: Final = 200


def parse(path: Path) -> Extract:
    writer = Writer()
    read(_declared(path.read_bytes()), writer)
    return writer.finish()


def _declared(content: bytes) -> str:
    """Decoded as the page says, where that works; else by its bytes."""
    found = re.search(rb"charset\s*=\s*[\"']?\s*([\w-]+)", content[:4096], re.IGNORECASE)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        if found and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            try:
                return content.decode(found[1].decode("ascii"))
            except (LookupError, UnicodeDecodeError):
                pass  # it says what it is not
    return decoded(content)


def read(content: str, writer: Writer) -> None:
    """Write the blocks of a page or of a part of one."""
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415

    tree = LexborHTMLParser(content)
    tree.strip_tags(_UNREAD)
    if tree.body is not None:
        walk = _Walk(writer)
        walk.node(tree.body, 0)
        walk.end()


class _Walk:
    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._line: list[str] = []

    def end(self, kind: str = PARAGRAPH, level: int = 0) -> None:
        """The text so far is a block."""
        self._writer.add("".join(self._line), kind, level)
        self._line.clear()

    def node(self, node: Any, depth: int) -> None:
        """Write a node's children in order."""
        child = node.child
        while child is not None:
            self._child(child, depth)
            child = child.next

    def _child(self, child: Any, depth: int) -> None:
        tag = child.tag
        if tag == "-text":
            self._line.append((child.text(deep=False) or "").replace("\n", " "))
        elif tag == "br":
            self._line.append("\n")
        elif tag in {"-comment", "_comment", "!--"}:
            return
        elif tag in _HEADINGS:
            self.end()
            self._line.append(child.text(separator=""))
            self.end(HEADING, _HEADINGS[tag])
        elif tag == "pre":
            self.end()
            self._writer.add(child.text(separator=""), CODE)
        elif tag == "table" or depth > _DEEPEST:
            self.end()
            self._table(child)
        elif tag in _BLOCKS:
            self.end()
            if tag == "li":
                self._line.append("- ")
            self.node(child, depth + 1)
            if "".join(self._line).strip() == "-":
                self._line.clear()
            self.end()
        else:
            self.node(child, depth + 1)

    def _table(self, table: Any) -> None:
        rows = []
        for row in table.css("tr"):
            cells = [" ".join(cell.text(separator=" ").split()) for cell in row.css("td, th")]
            if any(cells):
                rows.append(" | ".join(cells))
        self._writer.add("\n".join(rows) or " ".join(table.text(separator=" ").split()), TABLE)
