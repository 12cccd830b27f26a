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

EVENTS: Final = "agent.events"
TASKS: Final = "agent.tasks"
SOURCE: Final = "/agents"

TERMINAL: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})
DELTAS: Final = frozenset({"thinking.delta", "tool_call.delta", "message.delta"})
TYPES: Final = frozenset(
    {
        "run.queued",  # {input: {message, text}}
        "run.started",  # {instance, model}
        "thinking.delta",  # {item, offset, text}
        "thinking.completed",  # {item, text}
        "tool_call.started",  # {call, name, origin, side_effect}
        "tool_call.delta",  # {call, fragment}
        "tool_call.completed",  # {call, name, arguments}
        "tool_result",  # {call, name, status: ok|error|timeout, content, latency_ms, replayed}
        "retrieval.degraded",  # {reason}
        "approval.requested",  # {call, round, name, arguments, reason: unsafe|policy|interrupted, expires}
        "approval.resolved",  # {call, round, decision: approve|reject|expired|cancelled, by}
        "message.delta",  # {message, offset: code points, text}
        "message.completed",  # {message, text, citations, sha256}
        "usage",  # {model, provider, input, output, cached, reasoning, usage: [event ids]}
        "run.takeover",  # {old_epoch, new_epoch, resumed_from, discard_after_seq}
        "run.completed",  # {message, usage: Totals}
        "run.failed",  # {code, message, retryable, provider, usage}
        "run.cancelled",  # {by, usage: where it is known}
    }
)


class Head(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of an event; decoding it skips the rest."""

    type: str
    subject: str
    tenant: str
    user: str
    conversation: str
    seq: int
    epoch: int


class Citation(msgspec.Struct, frozen=True, gc=False):
    """Where a statement stands: `quote` is the source text of that version between `start` and `end`."""

    document: str
    version: int
    start: int
    """Code points from the start of the document's extracted text."""
    end: int
    quote: str
    page: int | None = None
    name: str = ""
    marker: int = 0
    """The `[n]` of the answer that it stands for."""


class Totals(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "input_tokens": "input",
        "output_tokens": "output",
        "cached_tokens": "cached",
        "reasoning_tokens": "reasoning",
    },
):
    """What a run has used so far, over takeovers and broken-off requests too."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Part of the input."""
    reasoning_tokens: int = 0
    """Part of the output."""
    requests: int = 0
    """To models, those that a provider counted."""
    tool_calls: int = 0
    """That have a result."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


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
