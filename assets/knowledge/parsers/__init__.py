"""From a file's bytes to text with structure. Runs in a process of its own: see `assets.knowledge.parsing`."""

from collections.abc import Callable
from pathlib import Path

from assets.knowledge.parsers.extract import Extract

VERSION = "1"
"""Part of the names of derived texts: raise it when any parser gives another text."""


def parser_of(kind: str) -> Callable[[Path], Extract]:
    """The parser of a kind that `detect` names; imported when chosen."""
    # Each costs what its library costs; a child process reads one file.
    if kind == "pdf":
        from assets.knowledge.parsers.pdf import parse as pdf  # noqa: PLC0415

        return pdf
    if kind == "docx":
        from assets.knowledge.parsers.docx import parse as docx  # noqa: PLC0415

        return docx
    if kind == "html":
        from assets.knowledge.parsers.html import parse as html  # noqa: PLC0415

        return html
    if kind == "markdown":
        from assets.knowledge.parsers.markdown import parse as markdown  # noqa: PLC0415

        return markdown
    from assets.knowledge.parsers.plain import parse as plain  # noqa: PLC0415

    return plain
