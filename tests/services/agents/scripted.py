"""A loop that does what its input says: `steps=3 words=4 pause=0.01 gate=/path effects=/path end=raise`.

Every step says its words, takes effect once (a line in the file `effects`) and is a checkpoint with one
usage record; with a `gate` nothing ends before that file exists.
"""

import asyncio
import hashlib
from pathlib import Path

from core.contracts.run_events import Totals
from core.eventlog.api import NewRecord
from services.agents.journal import Journal
from services.agents.model import Outcome, RunContext


def words_of(step: int, words: int) -> str:
    return "".join(f"{step}.{word} " for word in range(words))


def answer_to(script: dict[str, str]) -> str:
    """What a run with this script answers in the end."""
    return "".join(words_of(step, int(script.get("words", 3))) for step in range(int(script.get("steps", 2))))


def _take_effect(file: Path, line: str) -> None:
    with file.open("a") as effects:
        effects.write(line)


async def execute(run: RunContext, journal: Journal) -> Outcome:
    script = dict(part.split("=", 1) for part in run.input.text.split() if "=" in part)
    if script.get("end") == "raise":
        raise RuntimeError("as the script says")
    message, said = f"msg_of_{run.run_id}", b"".join(step.payload for step in run.checkpoints).decode()
    steps, words, pause = (
        int(script.get("steps", 2)),
        int(script.get("words", 3)),
        float(script.get("pause", 0)),
    )
    for step in range(len(run.checkpoints), steps):
        journal.turn = step + 1
        part = ""
        for word in range(words):
            piece = f"{step}.{word} "
            journal.emit("message.delta", {"message": message, "offset": len(said + part), "text": piece})
            part += piece
            await asyncio.sleep(pause)
            if journal.cancelled.is_set() and script.get("deaf") is None:
                return Outcome(status="cancelled")
        await journal.flush()
        if "effects" in script:
            _take_effect(Path(script["effects"]), f"{run.run_id} {step}\n")
        record = NewRecord("usage.records", run.tenant_id.encode(), f"{run.run_id}:{step}".encode())
        await journal.checkpoint("tool", part.encode(), [record])
        said += part
    while "gate" in script and not Path(script["gate"]).exists():  # noqa: ASYNC240
        await asyncio.sleep(0.01)
        if journal.cancelled.is_set() and script.get("deaf") is None:
            return Outcome(status="cancelled")
    if "answer" in script:
        said = script["answer"].encode().decode("unicode_escape")
    if "history" in script:
        said = "|".join(one.text for one in run.history)
    sha256 = hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()
    journal.emit("message.completed", {"message": message, "text": said, "citations": [], "sha256": sha256})
    return Outcome(status="completed", message_id=message, text=said, totals=Totals(7, steps, requests=steps))
