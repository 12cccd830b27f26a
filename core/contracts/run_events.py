"""Payloads of `agent.events`: what `data` of each type of event holds.

Ids begin with what they name: `run_`, `msg_` a message, `tcl_` a call of a tool, `thk_` a thought.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Reason = Literal["unsafe", "policy", "interrupted"]
"""Why a person is asked: the tool may change something each time, the agent wants it so, or the call began
and its instance was lost, so that it may have happened."""
Decision = Literal["approve", "reject", "expired", "cancelled"]
ToolStatus = Literal["ok", "error", "timeout"]


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What `data` of one type of event holds."""


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
    """What a run has used so far, over takeovers and broken-off requests too; `cached` is part of `input`,
    `reasoning` of `output`, `requests` are those to models that a provider counted."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
    requests: Count = 0
    tool_calls: Count = 0
    """That have a result."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Asked(Payload, frozen=True):
    """The message that a run answers; `text` is its beginning where it is `truncated`."""

    message: str
    text: str
    truncated: bool = False


class RunQueued(Payload, frozen=True):
    """The run is stored and waits for an instance."""

    input: Asked


class RunStarted(Payload, frozen=True):
    """An instance has taken the run for the first time; `model` is `provider/model`, empty where it is unknown."""

    instance: str
    model: str


class ThinkingDelta(Payload, frozen=True):
    """`text` stands at `offset` (code points) of what the model thinks; no part of the answer."""

    item: str
    offset: Count
    text: str


class ThinkingCompleted(Payload, frozen=True):
    """The whole of a thought."""

    item: str
    text: str


class ToolCallStarted(Payload, frozen=True):
    """The model begins a call; `side_effect` is empty for a tool that there is not."""

    call: str
    name: str
    origin: str
    side_effect: Literal["pure", "idempotent", "unsafe", ""]


class ToolCallDelta(Payload, frozen=True):
    """The next part of the arguments, JSON."""

    call: str
    fragment: str


class ToolCallCompleted(Payload, frozen=True):
    """The whole of a call, with `arguments` as the model wrote them: JSON if it did well."""

    call: str
    name: str
    arguments: str


class ToolResult(Payload, frozen=True):
    """What a call came to, in milliseconds."""

    call: str
    name: str
    status: ToolStatus
    content: str
    latency_ms: Count
    replayed: bool


class RetrievalDegraded(Payload, frozen=True):
    """The run goes on without documents or memories, or with fewer."""

    reason: str


class ApprovalRequested(Payload, frozen=True):
    """The run stands still until a person decides or the question expires; `round` counts the questions about
    one call."""

    call: str
    round: Annotated[int, msgspec.Meta(ge=1)]
    name: str
    arguments: str
    reason: Reason
    expires: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class ApprovalResolved(Payload, frozen=True):
    """The question has its answer; `by` is a person, or `agents` for the clock."""

    call: str
    round: Annotated[int, msgspec.Meta(ge=1)]
    decision: Decision
    by: str


class MessageDelta(Payload, frozen=True):
    """`text` stands at `offset` (code points) of the message."""

    message: str
    offset: Count
    text: str


class MessageCompleted(Payload, frozen=True):
    """The whole text, its hash as UTF-8, and those of its citations that hold; `incomplete` where the model
    reached its limit of tokens before it had said all of the answer."""

    message: str
    text: str
    citations: tuple[Citation, ...]
    sha256: Sha256
    incomplete: bool = False


class ModelUsage(Payload, frozen=True):
    """What a provider reported of one request, or an estimate where it reported nothing; `usage` names the events of `usage.records` that meter it."""

    model: str
    provider: str
    input: Count
    output: Count
    cached: Count
    reasoning: Count
    usage: tuple[str, ...]


class RunTakeover(Payload, frozen=True):
    """Another instance goes on behind `resumed_from` checkpoints: drop what was assembled from events above
    `discard_after_seq`."""

    old_epoch: Count
    new_epoch: Count
    resumed_from: Count
    discard_after_seq: Count


class RunCompleted(Payload, frozen=True):
    """The run has answered with this message."""

    message: str
    usage: Totals


class RunFailed(Payload, frozen=True):
    """The run has no answer: `code` is stable, `message` says what to do."""

    code: str
    message: str
    retryable: bool
    provider: str
    usage: Totals = Totals()


class RunCancelled(Payload, frozen=True):
    """Somebody ended the run; no `usage` where it went while an instance had it."""

    by: str
    usage: Totals | msgspec.UnsetType = msgspec.UNSET


PAYLOADS: Final[Mapping[str, type[Payload]]] = {
    "run.queued": RunQueued,
    "run.started": RunStarted,
    "thinking.delta": ThinkingDelta,
    "thinking.completed": ThinkingCompleted,
    "tool_call.started": ToolCallStarted,
    "tool_call.delta": ToolCallDelta,
    "tool_call.completed": ToolCallCompleted,
    "tool_result": ToolResult,
    "retrieval.degraded": RetrievalDegraded,
    "approval.requested": ApprovalRequested,
    "approval.resolved": ApprovalResolved,
    "message.delta": MessageDelta,
    "message.completed": MessageCompleted,
    "usage": ModelUsage,
    "run.takeover": RunTakeover,
    "run.completed": RunCompleted,
    "run.failed": RunFailed,
    "run.cancelled": RunCancelled,
}
"""By type of event."""
