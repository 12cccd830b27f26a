"""What a run is made of: shared by the runner, the loop and the OpenAI surface.

The runner (`services.agents.runner`) builds a `RunContext` from the run's rows, hands it to
`execute(run, journal, …)` and ends the run by the `Outcome` that comes back.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from core.contracts.run_events import Citation, Decision, Reason, Totals

Role = Literal["user", "assistant", "system"]
Status = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]
OPEN: Final = frozenset[Status]({"queued", "running", "waiting"})
"""`waiting` is for a person's decision; nobody holds a lease meanwhile."""
Ending = Literal["completed", "failed", "cancelled"]
INCOMPLETE: Final = "max_output_tokens"
"""Code of a completed run whose answer the model did not finish within its limit of tokens."""
CheckpointKind = Literal["model", "tool"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run may use; it fails with `limit_steps`, `limit_tokens`, `limit_cost` or `limit_seconds`. Tokens and
    cost are checked before each request to the model, and its output by an estimate while it comes."""

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
    seconds: Annotated[
        int,
        Meta(ge=1, le=3600, description="From start to end, over takeovers too, without waits for people."),
    ] = 300


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
    approval: Annotated[
        dict[str, Literal["always", "never"]],
        Meta(
            max_length=32,
            description="Of some of these tools whether a person must allow each call; left out: of unsafe ones.",
        ),
    ] = msgspec.field(default_factory=dict)
    knowledge_bases: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=64, description="What knowledge search looks in, ids; all where empty."),
    ] = ()
    limits: Limits = Limits()
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_output_tokens: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=10_000_000,
                description="Of one run; its answer ends there, `incomplete`. The provider's own where null.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        """Raises: ValueError; a misspelt name would let a tool act unasked."""
        if unknown := sorted(self.approval.keys() - set(self.tools)):
            raise ValueError(f"`approval` names {', '.join(unknown)}, which `tools` does not list")

    def stored(self) -> str:
        """As JSON for the database. A field that came later is there only where it says something: an instance of the
        version before, which refuses unknown fields, still reads all other specs."""
        told = msgspec.structs.asdict(self)
        if self.max_output_tokens is None:
            del told["max_output_tokens"]
        return msgspec.json.encode(told).decode()


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


class Answered(msgspec.Struct, frozen=True):
    """What became of a question to a person."""

    call: str
    round: int
    decision: Decision
    note: str = ""


class Question(msgspec.Struct, frozen=True):
    """May this call be made? `round` counts the questions about one call."""

    call: str
    round: int
    tool: str
    arguments: str
    """JSON."""
    reason: Reason
    expires: datetime


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
    answered: tuple[Answered, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended. The runner turns it into the terminal event and the stored answer, or lets the
    run wait where there is a `question`."""

    status: Ending | Literal["waiting"]
    question: Question | None = None
    """For `waiting`."""
    message_id: str = ""
    """Of the answer, as in its `message.completed`; empty where there is none."""
    text: str = ""
    citations: tuple[Citation, ...] = ()
    totals: Totals = Totals()
    """Of the whole run, also of what checkpoints brought from earlier executions."""
    error_code: str = ""
    """Stable, snake_case; for `failed`, and `INCOMPLETE` for an answer that is not all of it."""
    error_message: str = ""
    """For people: what happened and what to do. Never secrets."""
    retryable: bool = False
    provider: str = ""
