"""PDF through PDFium: text by page, lines that were broken by the page's width put together again."""

from pathlib import Path
from typing import Any, Final

from assets.knowledge.parsers.extract import HEADING, Extract, RefusedError, Writer

MOST_PAGES: Final = 5000
SCANNED: Final = 10
"""Letters and digits a page, on average, below which a document with images counts as scanned."""
_ENDS: Final = tuple(".!?:;。！？：；…")


def parse(path: Path) -> Extract:
    import pypdfium2 as pdfium  # noqa: PLC0415
    from pypdfium2 import raw  # noqa: PLC0415

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == raw.FPDF_ERR_PASSWORD or "password" in str(error).lower():
            raise RefusedError("the file is encrypted; upload it without a password") from None
        raise RefusedError("the file is damaged or cut off: it cannot be opened as PDF") from None
    try:
        return _read(document, raw)
    finally:
        document.close()


def _read(document: Any, raw: Any) -> Extract:
    count = len(document)
    if count > MOST_PAGES:
        raise RefusedError(f"the document has {count:,} pages, more than {MOST_PAGES:,}; divide it")
    titles = _titles(document)
    writer, letters, images = Writer(), 0, False
    for number in range(count):
        writer.page = number + 1
        try:
            page = document[number]
            textpage = page.get_textpage()
            text = textpage.get_text_range(errors="replace")
            textpage.close()
            if not images:
                images = any(True for _ in page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))
            page.close()
        except Exception as error:
            if type(error).__name__ != "PdfiumError":
                raise
            continue  # a page that cannot be opened; the others may
        letters += sum(map(str.isalnum, text))
        for block in _paragraphs(text):
            level = titles.get((number, _folded(block)))
            writer.add(block, HEADING if level else "paragraph", level or 0)
    if letters <= SCANNED * max(1, count) and images:
        raise RefusedError(
            f"{count} pages without text: scanned; its text would have to be recognised", state="needs_ocr"
        )
    return writer.finish(count)


def _titles(document: Any) -> dict[tuple[int, str], int]:
    """(page, folded title) of the outline, with its level; nothing where it is damaged."""
    found: dict[tuple[int, str], int] = {}
    try:
        for entry in document.get_toc(max_depth=6):
            destination = entry.get_dest()
            if destination is not None and destination.get_index() is not None and len(found) < 2000:
                found[destination.get_index(), _folded(entry.get_title())] = entry.level + 1
    except Exception as error:
        if type(error).__name__ not in {"PdfiumError", "UnicodeDecodeError"}:
            raise
    return found


def _folded(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _paragraphs(text: str) -> list[str]:
    """Lines as paragraphs: a line as long as most, not at the end of a sentence, goes on in the next one."""
    # PDFium marks a hyphen at a line's end with U+0002 or U+FFFE.
    for mark in ("\x02", "\ufffe"):
        text = text.replace(f"{mark}\r\n", "").replace(f"{mark}\n", "").replace(mark, "-")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    wide = 0.6 * lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
    found: list[str] = []
    open_ = False
    for line in lines:
        if not line:
            open_ = False
            continue
        if open_:
            found[-1] += line if _joins(found[-1][-1], line[0]) else f" {line}"
        else:
            found.append(line)
        open_ = len(line) >= wide and not line.endswith(_ENDS)
    return _merged(found)


def _merged(paragraphs: list[str]) -> list[str]:
    """A paragraph that ends where a line ends full goes on if the next begins in lower case."""
    found: list[str] = []
    for paragraph in paragraphs:
        if found and paragraph[0].islower() and not found[-1].endswith(_ENDS):
            found[-1] += f" {paragraph}"
        else:
            found.append(paragraph)
    return found


def _joins(before: str, after: str) -> bool:
    """Between characters of a script without spaces a line's end is nothing."""
    return _unspaced(before) and _unspaced(after)


def _unspaced(character: str) -> bool:
    return (
        "\u2e80" <= character <= "\u9fff"
        or "\uf900" <= character <= "\ufaff"
        or "\uff00" <= character <= "\uffef"
    )
