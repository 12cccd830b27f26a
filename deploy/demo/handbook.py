"""The project's own handbook as the demo's documents, its questions, and a PDF made from it."""

import ctypes
import io
import re
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "docs" / "handbook"
LANGUAGES: Final = ("en", "zh")
PDF: Final = "handbook.pdf"

MARKER_QUESTION: Final = "What is the marker of this handbook?"

_PAGE: Final = (595.0, 842.0)
"""A4 in points."""
_LINES: Final = 46
_COLUMNS: Final = 88


@dataclass(frozen=True, slots=True)
class Question:
    """`document` names the file that answers; `holds` is a part of the sentence that does."""

    text: str
    document: str
    holds: str


def questions() -> list[Question]:
    """The demo's questions, in order."""
    entries = tomllib.loads((FOLDER / "questions.toml").read_text())["question"]
    return [Question(**entry) for entry in entries]


def marker(tenant: str) -> str:
    """What only this tenant's copy of the handbook says."""
    return f"MARKER-{tenant.upper()}"


def documents(tenant: str) -> dict[str, bytes]:
    """File name to content: each language with the tenant's marker, and the English one as a PDF."""
    texts = {f"{language}.md": (FOLDER / f"{language}.md").read_text() for language in LANGUAGES}
    texts["en.md"] += f"\n## Marker\n\nThe marker of this handbook is {marker(tenant)}.\n"
    files = {name: text.encode() for name, text in texts.items()}
    files[PDF] = pdf((FOLDER / "en.md").read_text())
    return files


def pdf(text: str) -> bytes:
    """The text on A4 pages in Helvetica; Latin script only, because the font is not embedded."""
    import pypdfium2  # noqa: PLC0415 - 9 MB that only the demo's own documents need

    lines = [line for each in text.splitlines() for line in textwrap.wrap(each, _COLUMNS) or [""]]
    document = pypdfium2.PdfDocument.new()
    font = pypdfium2.raw.FPDFText_LoadStandardFont(document.raw, b"Helvetica")
    for first in range(0, len(lines), _LINES):
        page = document.new_page(*_PAGE)
        for number, line in enumerate(lines[first : first + _LINES]):
            if not line:
                continue
            item = pypdfium2.raw.FPDFPageObj_CreateTextObj(document.raw, font, 10.0)
            encoded = ctypes.create_string_buffer(line.encode("utf-16-le") + b"\x00\x00")
            wide = ctypes.cast(encoded, ctypes.POINTER(pypdfium2.raw.FPDF_WCHAR))
            pypdfium2.raw.FPDFText_SetText(item, wide)
            pypdfium2.raw.FPDFPageObj_Transform(item, 1, 0, 0, 1, 60, _PAGE[1] - 60 - 16 * number)
            pypdfium2.raw.FPDFPage_InsertObject(page.raw, item)
        page.gen_content()
        page.close()
    output = io.BytesIO()
    document.save(output)
    document.close()
    return _undated(output.getvalue())


def _undated(content: bytes) -> bytes:
    """The same text gives the same bytes: PDFium writes the time of day and a random identifier of the same length,
    and each demo would upload, read and embed a new version of what is there already."""
    for pattern in (rb"(?<=CreationDate\(D:)\d{14}", rb"(?<=/ID\[)[<>0-9A-F]+"):
        content = re.sub(pattern, lambda found: re.sub(rb"[0-9A-F]", b"0", found[0]), content)
    return content
