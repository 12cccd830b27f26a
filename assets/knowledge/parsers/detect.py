"""Which parser a file needs, by its content first: names and media types are what somebody typed."""

import zipfile
from pathlib import Path
from typing import Final

from assets.knowledge.parsers.extract import RefusedError

_HEAD: Final = 4096
_MARKDOWN: Final = frozenset({"md", "markdown", "mdown"})
_HTML: Final = frozenset({"html", "htm", "xhtml"})
_OTHERS: Final = {
    b"{\\rtf": "RTF",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
}
_IMAGES: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*", b"RIFF")
_READABLE: Final = "PDF, DOCX, HTML, Markdown and plain text are"


def detect(path: Path, name: str, media_type: str) -> str:
    """`pdf`, `docx`, `html`, `markdown` or `text`.

    Raises:
        RefusedError: empty, encrypted, an image, or of a kind that nothing here reads.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise RefusedError("the file is empty")
    said = hint(name, media_type)
    binary = _binary(path, head)
    if binary:
        return binary
    if said == "mail":
        raise RefusedError(f"mails are not read as documents; {_READABLE}")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if said == "html" or start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return said or "text"


def hint(name: str, media_type: str) -> str:
    """`html`, `markdown` or `mail` where name or media type say so: text alone does not tell them apart."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    media = media_type.partition(";")[0].strip().lower()
    if suffix == "eml" or media == "message/rfc822":
        return "mail"
    if suffix in _HTML or media in {"text/html", "application/xhtml+xml"}:
        return "html"
    return "markdown" if suffix in _MARKDOWN or media == "text/markdown" else ""


def _binary(path: Path, head: bytes) -> str:
    """The kind of a file that is not text; empty where it may be text."""
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK"):
        return _archive(path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        if "EncryptedPackage".encode("utf-16-le") in path.read_bytes():
            raise RefusedError("the file is encrypted; upload it without a password")
        raise RefusedError(f"old binary Office files are not read; {_READABLE}")
    if head.startswith(_IMAGES):
        raise RefusedError(
            "an image has no text of its own; its text would have to be recognised", state="needs_ocr"
        )
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise RefusedError(f"{what} files are not read; {_READABLE}")
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\x00" in head and not wide:
        raise RefusedError(f"the file is binary and of no known kind; {_READABLE}")
    return ""


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise RefusedError("the file is damaged or cut off: its archive cannot be opened") from None
    if "word/document.xml" in names:
        return "docx"
    for folder, what in (("ppt/", "PowerPoint"), ("xl/", "Excel"), ("content.xml", "OpenDocument")):
        if any(name.startswith(folder) for name in names):
            raise RefusedError(f"{what} files are not read; {_READABLE}")
    raise RefusedError(f"archives are not read; {_READABLE}")
