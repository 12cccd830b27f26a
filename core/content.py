"""One hash for the content of rows, whatever their order, files and versions: what two runs are compared by."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def digest(rows: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 over sorted rows as text."""
    lines = sorted(json.dumps([str(value) for value in row]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
