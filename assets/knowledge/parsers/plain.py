"""Plain text in whatever encoding; paragraphs are what empty lines part."""

import re
from pathlib import Path

from assets.knowledge.parsers.extract import Extract, RefusedError, Writer


def parse(path: Path) -> Extract:
    writer = Writer()
    for block in re.split(r"\n[^\S\n]*\n", decoded(path.read_bytes())):
        writer.add(block)
    return writer.finish()


def decoded(content: bytes) -> str:
    """The text, by its byte order mark, as UTF-8, or by what its bytes look like; with `\\n` line ends.

    Raises:
        RefusedError: no encoding fits.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return _lines(content.decode(encoding, "replace"))
    try:
        return _lines(content.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes  # noqa: PLC0415

    # Its parts say enough: looking at megabytes takes it minutes.
    best = from_bytes(content[:200_000], cp_exclusion=["utf_7", "hz"]).best()
    if best is None:
        raise RefusedError("the file is neither text in a known encoding nor of another known kind")
    return _lines(content.decode(best.encoding, "replace"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
