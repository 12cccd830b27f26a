"""DOCX through python-docx: the body in its order, paragraphs, tables and equations alike.

Its own lists of paragraphs and of tables are two lists: what stood between them would be lost.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from assets.knowledge.parsers.extract import HEADING, PARAGRAPH, TABLE, Extract, RefusedError, Writer

_DAMAGED: Final = (SyntaxError, zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError, EOFError)
"""What python-docx lets through of a file that is cut off; broken XML is a SyntaxError of lxml."""
MOST_UNPACKED: Final = 300_000_000
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_BREAKS: Final = frozenset({f"{_W}br", f"{_W}cr"})
_SKIPPED: Final = frozenset(
    {
        f"{_W}del",
        f"{_W}moveFrom",
        f"{_W}instrText",
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    }
)


def parse(path: Path) -> Extract:
    from docx import Document  # noqa: PLC0415
    from docx.opc.exceptions import OpcError  # noqa: PLC0415

    _refuse_bomb(path)
    try:
        document = Document(str(path))
    except (*_DAMAGED, OpcError):
        raise RefusedError("the file is damaged or cut off: it cannot be opened as DOCX") from None
    levels = _levels(document)
    writer = Writer()
    _body(document.element.body, levels, writer)
    return writer.finish()


def _refuse_bomb(path: Path) -> None:
    """Refuse what would unpack to far more than a document, before anything unpacks it."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise RefusedError("the file is damaged or cut off: its archive cannot be opened") from None
    if any(info.flag_bits & 1 for info in infos):
        raise RefusedError("the file is encrypted; upload it without a password")
    size = sum(info.file_size for info in infos)
    if size > MOST_UNPACKED:
        raise RefusedError(
            f"the file would unpack to {size // 1_000_000:,} MB, more than {MOST_UNPACKED // 1_000_000}"
        )


def _levels(document: Any) -> dict[str, int]:
    """Style id to heading level, by the style's English name."""
    found = {}
    for style in document.styles:
        name = (style.name or "").lower()
        if match := re.fullmatch(r"heading (\d)", name):
            found[style.style_id] = int(match[1])
        elif name == "title":
            found[style.style_id] = 1
    return found


def _body(parent: Any, levels: dict[str, int], writer: Writer) -> None:
    for child in parent:
        if child.tag == f"{_W}p":
            level = _level(child, levels)
            writer.add(_text(child), HEADING if level else PARAGRAPH, level)
        elif child.tag == f"{_W}tbl":
            writer.add("\n".join(_rows(child)), TABLE)
        elif child.tag in {f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml", f"{_W}smartTag"}:
            _body(child, levels, writer)


def _level(paragraph: Any, levels: dict[str, int]) -> int:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    return levels.get(style.get(f"{_W}val"), 0) if style is not None else 0


def _rows(table: Any) -> Iterator[str]:
    for row in table.iter(f"{_W}tr"):
        if next(row.iterancestors(f"{_W}tbl")) is table:
            cells = [" ".join(_text(cell).split()) for cell in row.iter(f"{_W}tc") if _row_of(cell) is row]
            if any(cells):
                yield " | ".join(cells)


def _row_of(cell: Any) -> Any:
    return next(cell.iterancestors(f"{_W}tr"))


def _text(element: Any) -> str:
    """Text in the order of the document; what was struck out, and old forms of a drawing, are left out."""
    parts: list[str] = []
    stack = [element]
    while stack:
        node = stack.pop()
        if node.tag in _SKIPPED:
            continue
        if node.tag in {f"{_W}t", f"{_M}t"}:
            parts.append(node.text or "")
        elif node.tag == f"{_W}tab":
            parts.append("\t")
        elif node.tag in _BREAKS or (node.tag == f"{_W}p" and parts):
            parts.append("\n")
        stack.extend(reversed(node))
    return "".join(parts)
