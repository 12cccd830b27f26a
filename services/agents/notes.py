"""The notes of one run between two ticks: merged, then numbered and encoded when they are written."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from opentelemetry.propagate import inject

from core.clock import now, rfc3339
from core.contracts.agents import DELTAS, EVENTS, TERMINAL, TYPES, AgentEvent
from core.eventlog.api import NewRecord
from core.eventlog.headers import Headers, record_size
from core.topology import TOPICS
from services.agents.journal import FencedError
from services.agents.model import CheckpointKind, Outcome, Question, StoredMessage

MAX_DATA: Final = 512_000
"""Bytes of JSON of one event's data."""
_MERGED: Final = 4096
"""Characters above which a merged delta is not added to."""
_ITEM: Final = {
    "message.delta": ("message", "text"),
    "thinking.delta": ("item", "text"),
    "tool_call.delta": ("call", "fragment"),
}
"""What names the item of a delta, and what of two deltas of one item is joined."""
_OWN: Final = TERMINAL | {
    "run.queued", "run.started", "run.takeover", "approval.requested", "approval.resolved",
}  # fmt: skip
_JSON: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Identity:
    """What every event of a run says of it."""

    run_id: str
    tenant_id: str
    user: str
    agent_id: str
    agent_version: int
    conversation_id: str
    epoch: int
    traceparent: str = ""

    def event(self, seq: int, turn: int, type: str, data: dict[str, Any]) -> AgentEvent:
        return AgentEvent(
            id=f"{self.run_id}:{self.epoch}:{seq}",
            type=type,
            subject=self.run_id,
            time=now(),
            tenant=self.tenant_id,
            user=self.user,
            agent=self.agent_id,
            agentversion=self.agent_version,
            conversation=self.conversation_id,
            seq=seq,
            epoch=self.epoch,
            turn=turn,
            data=data,
            traceparent=self.traceparent,
        )

    def record(self, seq: int, turn: int, type: str, data: dict[str, Any]) -> NewRecord:
        """The event as it goes to `agent.events`. Raises: ValueError for one that is too large."""
        event = self.event(seq, turn, type, data)
        headers: Headers = (("traceparent", self.traceparent.encode()),) if self.traceparent else ()
        return checked(NewRecord(EVENTS, event.key, event.encode(), headers))


def checked(record: NewRecord) -> NewRecord:
    """`record`, if its topic takes it. Raises: ValueError."""
    topic = TOPICS.get(record.topic)
    if topic is None:
        raise ValueError(f"{record.topic}: not in core.topology")
    if (size := record_size(record)) > topic.max_record_bytes:
        raise ValueError(f"a record of {size} bytes is above what {record.topic} takes")
    return record


def traceparent() -> str:
    """Of the current span; empty where there is none."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent", "")


@dataclass(slots=True)
class _Note:
    type: str
    data: dict[str, Any]
    turn: int


@dataclass(slots=True)
class Write:
    """What one transaction stores for one run; `previous_*` is what the row must say before."""

    journal: "RunJournal"
    notes: list[_Note] = field(default_factory=list)
    records: list[NewRecord] = field(default_factory=list)
    checkpoints: list[tuple[int, CheckpointKind, bytes]] = field(default_factory=list)
    messages: list[tuple[int, StoredMessage]] = field(default_factory=list)
    outcome: Outcome | None = None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    safe_notes: int | None = None
    """How many of the notes the last checkpoint covers."""
    previous_seq: int = 0
    previous_steps: int = 0
    seq: int = 0
    steps: int = 0
    safe_seq: int | None = None

    def number(self) -> None:
        """Give the notes their numbers and make records of them, in front of the others.

        Raises: ValueError for what cannot be written; the journal's numbers stay as they were.
        """
        journal = self.journal
        events = [
            journal.identity.record(journal.seq + position, note.turn, note.type, note.data)
            for position, note in enumerate(self.notes, 1)
        ]
        self.previous_seq, self.previous_steps = journal.seq, journal.written_steps
        self.seq = journal.seq + len(events)
        self.steps = journal.written_steps + len(self.checkpoints)
        if self.safe_notes is not None:
            self.safe_seq = self.previous_seq + self.safe_notes
        self.records = [*events, *self.records]

    def done(self) -> None:
        """It is durable."""
        self.journal.seq, self.journal.written_steps = self.seq, self.steps
        self.resolve(None)

    def resolve(self, error: Exception | None) -> None:
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
                # Who was cancelled meanwhile does not fetch it; that is no lost exception.
                waiter.exception()


class RunJournal:
    """`services.agents.journal.Journal` of one run in this process.

    Args:
        seq: number of the run's last event so far.
        steps: number of its checkpoints so far.
        place: next free place among the messages of the run's turn.
        wake: tells the recorder that there is something; true where it is waited for.
    """

    def __init__(
        self, identity: Identity, *, seq: int, steps: int, place: int, wake: Callable[[bool], None]
    ) -> None:
        self.identity = identity
        self.seq, self.written_steps = seq, steps
        self.turn = 0
        self.cancelled = asyncio.Event()
        self.cancelled_by = ""
        self.lost = asyncio.Event()
        """Set when the run is another's or gone."""
        self._steps, self._place, self._wake = steps, place, wake
        self._pending: Write | None = None

    def emit(self, type: str, data: Mapping[str, Any]) -> None:
        """As `Journal.emit`."""
        if type not in TYPES or type in _OWN:
            raise ValueError(f"{type!r} is not an event that a loop emits")
        self.note(type, data)

    def note(self, type: str, data: Mapping[str, Any]) -> None:
        """`emit`, also for the runner's own events."""
        write = self._write()
        clean = _clean(data)
        if type in DELTAS and write.notes and self._merge(write, type, clean):
            return
        write.notes.append(_Note(type, clean, self.turn))
        self._wake(False)

    async def flush(self) -> None:
        """As `Journal.flush`."""
        await self._durable(self._write())

    async def checkpoint(
        self,
        kind: CheckpointKind,
        payload: bytes,
        records: Sequence[NewRecord] = (),
        messages: Sequence[StoredMessage] = (),
    ) -> None:
        """As `Journal.checkpoint`. Raises also ValueError for a record that its topic does not take."""
        write = self._write()
        accepted = [checked(record) for record in records]
        self._steps += 1
        write.checkpoints.append((self._steps, kind, payload))
        write.records += accepted
        self._add(write, messages)
        write.safe_notes = len(write.notes)
        await self._durable(write)

    async def end(self, outcome: Outcome) -> None:
        """Write the terminal event and end the run's row with all that was emitted before; where the outcome
        is to wait, ask and let the row wait.

        Raises: FencedError.
        """
        text = str(_clean(outcome.text))
        outcome = msgspec.structs.replace(
            outcome, text=text, error_message=str(_clean(outcome.error_message))[:2000]
        )
        write = self._write()
        if outcome.question is not None:
            write.notes.append(_Note("approval.requested", _asked(outcome.question), self.turn))
            write.safe_notes = len(write.notes)
        else:
            write.notes.append(_Note(*_terminal(outcome, self.cancelled_by), self.turn))
        if outcome.message_id and outcome.status == "completed":
            answer = StoredMessage(outcome.message_id, "assistant", text, outcome.citations)
            self._add(write, [answer])
        write.outcome = outcome
        await self._durable(write)

    def take(self) -> Write | None:
        """What waits to be written; the recorder calls `number` and `done` on it."""
        write, self._pending = self._pending, None
        return write

    def cancel(self, by: str) -> None:
        """Somebody wants the run to end."""
        self.cancelled_by = by
        self.cancelled.set()

    def lose(self) -> None:
        """The run is another's: everybody who waits hears it, nothing more is taken in."""
        self.lost.set()
        if (write := self.take()) is not None:
            write.resolve(FencedError(self.identity.run_id))

    def forget(self) -> None:
        """Drop what waits and could not be written; numbers go on as if it had not been noted."""
        self._steps = self.written_steps

    def _write(self) -> Write:
        if self.lost.is_set():
            raise FencedError(self.identity.run_id)
        if self._pending is None:
            self._pending = Write(self)
        return self._pending

    async def _durable(self, write: Write) -> None:
        waiter = asyncio.get_running_loop().create_future()
        write.waiters.append(waiter)
        self._wake(True)
        await waiter

    def _add(self, write: Write, messages: Sequence[StoredMessage]) -> None:
        for message in messages:
            write.messages.append((self._place, msgspec.convert(_clean(message), StoredMessage)))
            self._place += 1

    def _merge(self, write: Write, type: str, data: dict[str, Any]) -> bool:
        last, (item, joined) = write.notes[-1], _ITEM[type]
        same = last.type == type and last.turn == self.turn and last.data.get(item) == data.get(item)
        # Behind a checkpoint begins what a takeover would discard: it must not flow into what stays.
        if not same or write.safe_notes == len(write.notes) or len(last.data[joined]) > _MERGED:
            return False
        last.data[joined] += data[joined]
        return True


def _asked(question: Question) -> dict[str, Any]:
    return {
        "call": question.call,
        "round": question.round,
        "name": question.tool,
        "arguments": question.arguments,
        "reason": question.reason,
        "expires": rfc3339(question.expires),
    }


def _terminal(outcome: Outcome, cancelled_by: str) -> tuple[str, dict[str, Any]]:
    usage = msgspec.to_builtins(outcome.totals)
    if outcome.status == "completed":
        return "run.completed", {"message": outcome.message_id, "usage": usage}
    if outcome.status == "cancelled":
        return "run.cancelled", {"by": cancelled_by, "usage": usage}
    return "run.failed", {
        "code": outcome.error_code or "failed",
        "message": outcome.error_message,
        "retryable": outcome.retryable,
        "provider": outcome.provider,
        "usage": usage,
    }


def _clean(data: Any) -> Any:
    """What JSON, UTF-8 and PostgreSQL can hold: half surrogates and U+0000 become U+FFFD.

    Raises: ValueError for data above `MAX_DATA` or that is no JSON.
    """
    try:
        encoded = _JSON.encode(data)
    except UnicodeEncodeError:
        return _clean(_replaced(msgspec.to_builtins(data)))
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if len(encoded) > MAX_DATA:
        raise ValueError(f"{len(encoded)} bytes of JSON; an event takes {MAX_DATA}")
    if b"\\u0000" in encoded:
        data = _replaced(msgspec.to_builtins(data))
    return dict(data) if isinstance(data, Mapping) else data


def _replaced(data: Any) -> Any:
    if isinstance(data, str):
        return data.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(data, Mapping):
        return {_replaced(name): _replaced(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_replaced(value) for value in data]
    return data
