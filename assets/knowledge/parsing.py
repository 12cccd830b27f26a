"""The parsers behind a wall: what a file does to the process that reads it ends there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from assets.knowledge.parsers.extract import Block, Extract, RefusedError
from core.scratch import scratch

SECONDS: Final = 90.0
_ROOT: Final = Path(__file__).parents[2]


class ParserDiedError(Exception):
    """Reading took too long, too much memory, or ended the process. Another try may go better."""


def parse(path: Path, name: str, media_type: str, *, seconds: float = SECONDS) -> Extract:
    """Read a file in a child process with limits on time, memory and output.

    Raises:
        RefusedError: it will never be read; says why and how its version ends.
        ParserDiedError: it could not be read this time.
    """
    with scratch("parse") as folder:
        result = folder / "result.json"
        command = [sys.executable, "-m", "assets.knowledge.worker", str(path), str(result), name, media_type]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(_ROOT),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
        }
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ParserDiedError(f"reading the file took longer than {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise ParserDiedError(_why(code))
        return _extract(json.loads(result.read_text()))


def _why(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "reading the file took too much processor time"
    if code == -signal.SIGXFSZ:
        return "the text is too large"
    if code < 0:
        return f"the parser was ended by {signal.Signals(-code).name}"
    return "the parser failed"


def _extract(found: dict[str, object]) -> Extract:
    state, reason = found["state"], str(found.get("reason", ""))
    if state == "":
        raise ParserDiedError(reason)
    if state != "parsed":
        raise RefusedError(reason, state=str(state))
    return from_json(found)


def from_json(found: dict[str, object]) -> Extract:
    """An `Extract` from what `dataclasses.asdict` made of one."""
    text, blocks, pages = found["text"], found["blocks"], found["pages"]
    assert isinstance(text, str)
    assert isinstance(blocks, list)
    assert isinstance(pages, int)
    return Extract(text, [Block(**block) for block in blocks], pages)
