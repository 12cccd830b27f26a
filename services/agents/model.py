"""What a run is made of: shared by the runner, the loop and the OpenAI surface.

The runner (`services.agents.runner`) builds a `RunContext` from the run's rows, hands it to
`execute(run, journal, …)` and ends the run by the `Outcome` that comes back.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.contracts.agents import Citation

Role = Literal["user", "assistant", "system"]
Status = Literal["queued", "running", "completed", "failed", "cancelled"]
Ending = Literal["completed", "failed", "cancelled"]
CheckpointKind = Literal["model", "tool"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run may use; it fails with `limit_steps`, `limit_tokens`, `limit_cost` or `limit_seconds`."""

    steps: Annotated[int, Meta(ge=1, le=100, description="Requests to the model.")] = 12
    tokens: Annotated[int, Meta(ge=1, le=10_000_000, description="Input and output tokens together.")] = (
        400_000
    )
    cost: (
        Annotated[
            Decimal, Meta(description="In the price book's currency, decimal as text; none where null.")
        ]
        | None
    ) = None
    seconds: Annotated[int, Meta(ge=1, le=3600, description="From start to end, over takeovers too.")] = 300


class AgentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One version of an agent, as it is stored and as each run keeps it from its start on."""

    model: Annotated[
        str, Meta(pattern=r"^[^/\s]+/\S+$(?!\n)", max_length=200, description="`provider/model`")
    ]
    fallbacks: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^/\s]+/\S+$(?!\n)", max_length=200)], ...],
        Meta(max_length=5, description="Tried in this order when the model before does not answer."),
    ] = ()
    instructions: Annotated[str, Meta(max_length=100_000)] = ""
    tools: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=32, description="Names of registered tools."),
    ] = ()
    knowledge_bases: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=64, description="What knowledge search looks in, ids; all where empty."),
    ] = ()
    limits: Limits = Limits()
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None


def stored_spec(document: str) -> AgentSpec | None:
    """The spec of a run's row; None where it cannot be read, which must end that run and nothing else."""
    try:
        return msgspec.json.decode(document, type=AgentSpec)
    except msgspec.MsgspecError:
        return None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message of a conversation."""

    id: str
    role: Role
    text: str
    citations: tuple[Citation, ...] = ()


class Checkpoint(msgspec.Struct, frozen=True):
    """What a finished step of the loop left; `payload` is the loop's own."""

    step: int
    """1, 2, … within the run, over takeovers too."""
    kind: CheckpointKind
    payload: bytes


class RunContext(msgspec.Struct, frozen=True):
    """All that an execution of a run starts from."""

    run_id: str
    tenant_id: str
    user: str
    """Who asked: `usr_…` or `key_…`."""
    agent_id: str
    """Empty for a run without an agent."""
    agent_version: int
    spec: AgentSpec
    conversation_id: str
    epoch: int
    history: tuple[StoredMessage, ...]
    """What was said in the conversation before, oldest first, without `input`."""
    input: StoredMessage
    checkpoints: tuple[Checkpoint, ...]
    """In order; not empty where an earlier execution came further than the start."""
    deadline: datetime
    """Wall time (UTC) at which the run fails with `limit_seconds`; the runner enforces it too."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended. The runner turns it into the terminal event and the stored answer."""

    status: Ending
    message_id: str = ""
    """Of the answer, as in its `message.completed`; empty where there is none."""
    text: str = ""
    citations: tuple[Citation, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    tool_calls: int = 0
    """Totals of the whole run, also of what checkpoints brought from earlier executions."""
    error_code: str = ""
    """Stable, snake_case; for `failed`."""
    error_message: str = ""
    """For people: what happened and what to do. Never secrets."""
    retryable: bool = False
    provider: str = ""
