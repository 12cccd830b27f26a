"""Where the data made from a document lies in bucket `derived`.

All that comes of one content lies below one prefix, so that it is shared by versions with the same
content, found by listing, and erased with the last document of the organisation that has it.
"""

from typing import Final

BUCKET: Final = "derived"


def prefix(tenant: str, sha256: str) -> str:
    """Prefix of everything made from the content with this SHA-256 (lower-case hex)."""
    return f"{tenant}/{sha256}/"


def text_key(tenant: str, sha256: str, parser: str) -> str:
    """Extracted text as plain UTF-8: what offsets of passages and quotes count code points of.

    Args:
        parser: names the parser and its version, so that a better one makes a text of its own.
    """
    return f"{prefix(tenant, sha256)}text/{parser}.txt"
