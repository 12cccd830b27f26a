"""Contracts of `agent.events` and `agent.tasks`.

An event is a CloudEvents 1.0 event whose attributes say to whom it belongs, so that a gateway routes
it by `Head` without reading its data:

    {"specversion": "1.0", "id": "run_…:1:7", "type": "message.delta", "source": "/agents",
     "subject": "run_…", "time": "2026-02-18T12:00:00.000Z", "tenant": "org_…", "user": "usr_…",
     "agent": "agt_…", "agentversion": 3, "conversation": "cnv_…", "seq": 7, "epoch": 1, "turn": 1,
     "traceparent": "", "data": {"message": "msg_…", "offset": 0, "text": "The "}}

`seq` counts the events of one run from 1 without gaps, over takeovers too; `epoch` is the fencing
epoch of the instance that ran it. A run ends with exactly one event of `TERMINAL`. After
`run.takeover` readers drop what they assembled from events above its `data.discard_after_seq`.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from core.contracts.run_events import PAYLOADS

EVENTS: Final = "agent.events"
TASKS: Final = "agent.tasks"
SOURCE: Final = "/agents"

TERMINAL: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})
DELTAS: Final = frozenset({"thinking.delta", "tool_call.delta", "message.delta"})
TYPES: Final = frozenset(PAYLOADS)


class Head(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of an event; decoding it skips the rest."""

    type: str
    subject: str
    tenant: str
    user: str
    conversation: str
    seq: int
    epoch: int


class AgentEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One event of a run. `id` is `<run>:<epoch>:<seq>`."""

    id: str
    type: str
    subject: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: str
    user: str
    agent: str
    agentversion: int
    conversation: str
    seq: Annotated[int, msgspec.Meta(ge=1)]
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    """0 before the first instance has taken the run (`run.queued`)."""
    turn: Annotated[int, msgspec.Meta(ge=0)]
    data: dict[str, Any]
    """What it holds for each type: `core.contracts.run_events`."""
    traceparent: str = ""
    source: str = SOURCE
    specversion: str = "1.0"

    @property
    def key(self) -> bytes:
        """Key of the record in `agent.events`: a conversation stands in one partition, in order."""
        return self.conversation.encode()

    def encode(self) -> bytes:
        return _ENCODER.encode(self)


class AgentTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A wake-up: the truth is the run's row, so a task that is lost or doubled changes nothing."""

    run: str
    tenant: str
    conversation: str
    kind: str = "run"
    """run or cancel."""

    @property
    def key(self) -> bytes:
        return self.conversation.encode()

    def encode(self) -> bytes:
        return _ENCODER.encode(self)


_ENCODER = msgspec.json.Encoder()
_HEAD = msgspec.json.Decoder(Head)
_EVENT = msgspec.json.Decoder(AgentEvent)
_TASK = msgspec.json.Decoder(AgentTask)


def head(value: bytes) -> Head:
    """Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _HEAD.decode(value)


def event(value: bytes) -> AgentEvent:
    """Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _EVENT.decode(value)


def task(value: bytes) -> AgentTask:
    """Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _TASK.decode(value)
