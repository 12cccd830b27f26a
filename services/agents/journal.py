"""Journal of one run that is being executed: its events, checkpoints and usage, numbered and fenced.

`emit` only notes an event; the instance's `Recorder` writes the notes of all its runs in one
transaction a tick (docs/adr/0006). A run that another instance has taken over is noticed there: the
notes are dropped and everything that waits raises `FencedError`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from core.eventlog.api import NewRecord
from services.agents.model import CheckpointKind, StoredMessage


class FencedError(Exception):
    """Another instance has the run, or the run is gone. End at once and change nothing more."""


class Journal(Protocol):
    """What the loop sees of its run's journal."""

    cancelled: asyncio.Event
    """Set when somebody wants the run to end: stop and return `Outcome(status="cancelled")` within 5 s."""
    turn: int
    """Number of the model turn that events belong to; the loop sets it before each request to the model."""

    def emit(self, type: str, data: Mapping[str, Any]) -> None:
        """Note an event; never blocks. It is numbered and written at the next tick (25 ms at most).

        Deltas of one item that follow one another within a tick become one: `offset` of the first,
        `text` or `fragment` joined. The terminal event, `run.started` and `run.takeover` are the runner's.

        Raises:
            ValueError: for a type that is not in `core.contracts.agents.TYPES` or is the runner's, or
                data above 512 kB of JSON.
            FencedError: the run is no longer ours.
        """
        ...

    async def flush(self) -> None:
        """Return when all that was emitted is durable. Before a tool with effects: proof that the run is
        still ours. Raises: FencedError."""
        ...

    async def checkpoint(
        self,
        kind: CheckpointKind,
        payload: bytes,
        records: Sequence[NewRecord] = (),
        messages: Sequence[StoredMessage] = (),
    ) -> None:
        """Store a checkpoint with all that was emitted before and `records` (usage, through the outbox)
        and `messages` (into the conversation), durable in one fenced transaction when this returns.

        A takeover starts from here; readers then drop what was emitted later.

        Raises: FencedError.
        """
        ...
