"""What the agents service reads, and how it shows what it holds."""

from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from typing_extensions import TypedDict

from core.clock import rfc3339
from core.contracts.run_events import Decision, Reason
from services.agents.agent_store import Agent, Version
from services.agents.attachments import Attachment
from services.agents.decisions import Approval
from services.agents.model import AgentSpec, Limits, Status
from services.agents.store import Conversation, Message, Run
from services.agents.submissions import MAX_TEXT, Submitted

SLUG: Final = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"
SPEC_FIELDS: Final = AgentSpec.__struct_fields__

Slug = Annotated[
    str,
    Meta(pattern=SLUG, description="The agent's name in `model: agent:<slug>`: a-z, 0-9 and -, at most 63."),
]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Description = Annotated[str, Meta(max_length=2000)]
Title = Annotated[str, Meta(max_length=200)]
ClientMessageId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        description="Your name for the message: sent again it is the same message.",
    ),
]
Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
Metadata = Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]


class NewAgent(AgentSpec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    slug: Slug
    name: Name
    description: Description = ""
    publish: Annotated[bool, Meta(description="Let runs use this version from now on.")] = True

    @property
    def spec(self) -> AgentSpec:
        return AgentSpec(**{name: getattr(self, name) for name in SPEC_FIELDS})


class AgentChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays as it is. A change of what the agent does makes a new version."""

    slug: Slug | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    publish: Annotated[bool, Meta(description="Let runs use the version this makes.")] = False
    model: str | UnsetType = UNSET
    fallbacks: tuple[str, ...] | UnsetType = UNSET
    instructions: str | UnsetType = UNSET
    tools: tuple[str, ...] | UnsetType = UNSET
    approval: dict[str, str] | UnsetType = UNSET
    knowledge_bases: tuple[str, ...] | UnsetType = UNSET
    limits: Limits | UnsetType = UNSET
    temperature: float | UnsetType | None = UNSET
    max_output_tokens: int | UnsetType | None = UNSET

    def applied_to(self, spec: AgentSpec) -> dict[str, Any]:
        """`spec` with the change, to be checked as a whole."""
        changed = {name: getattr(self, name) for name in SPEC_FIELDS if getattr(self, name) is not UNSET}
        merged: dict[str, Any] = msgspec.to_builtins({**msgspec.structs.asdict(spec), **changed})
        return merged


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, Meta(ge=1, description="Of this agent; an older one is a way back.")]


class NewConversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    agent: Annotated[str, Meta(min_length=1, max_length=64, description="Id or slug.")]
    title: Title = ""
    metadata: Metadata = msgspec.field(default_factory=dict)


class ConversationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    title: Annotated[str, Meta(min_length=1, max_length=200)]


class NewMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    text: Text
    client_msg_id: ClientMessageId | None = None
    agent: (
        Annotated[
            str,
            Meta(min_length=1, max_length=64, description="Id or slug; the conversation's where left out."),
        ]
        | None
    ) = None


class NewRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    input: Text
    conversation_id: (
        Annotated[
            str, Meta(max_length=64, description="Goes on with a conversation; opens one where left out.")
        ]
        | None
    ) = None
    client_msg_id: ClientMessageId | None = None
    metadata: Metadata = msgspec.field(default_factory=dict)


class NewDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    decision: Literal["approve", "reject"]
    note: Annotated[str, Meta(max_length=1000, description="For the model too, where you reject.")] = ""
    round: Annotated[
        int, Meta(ge=1, le=1000, description="Which question about the call, as in `approval.requested`.")
    ] = 1


class AgentShown(TypedDict):
    """`version` is what runs use (null: not published), `latest_version` the newest; the rest is the newest's."""

    id: str
    object: Literal["agent"]
    slug: str
    name: str
    description: str
    version: int | None
    latest_version: int
    model: str
    fallbacks: list[str]
    instructions: str
    tools: list[str]
    approval: dict[str, str]
    knowledge_bases: list[str]
    limits: dict[str, Any]
    temperature: float | None
    max_output_tokens: int | None
    created_by: str
    created_at: str
    updated_at: str


class VersionShown(TypedDict):
    id: str
    object: Literal["agent.version"]
    version: int
    published: bool
    spec: dict[str, Any]
    created_by: str
    created_at: str


class ConversationShown(TypedDict):
    id: str
    object: Literal["conversation"]
    agent_id: str
    user_id: str
    title: str
    turns: int
    metadata: dict[str, Any]
    ws_channel: str
    created_at: str
    updated_at: str


class MessageShown(TypedDict):
    id: str
    object: Literal["message"]
    conversation_id: str
    run_id: str | None
    role: Literal["user", "assistant", "system"]
    text: str
    citations: list[dict[str, Any]]
    created_at: str


class RunUsage(TypedDict):
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    requests: int
    tool_calls: int


class RunError(TypedDict):
    code: str
    message: str
    retryable: bool
    provider: str


class RunShown(TypedDict):
    """`incomplete`: the answer ends at a limit of tokens, not where the model had said all of it."""

    id: str
    object: Literal["run"]
    conversation_id: str
    agent_id: str
    agent_version: int
    model: str
    status: Status
    cancel_requested: bool
    message_id: str | None
    incomplete: bool
    usage: RunUsage
    error: RunError | None
    last_seq: int
    epoch: int
    metadata: dict[str, Any]
    events_url: str
    ws_channel: str
    created_at: str
    started_at: str | None
    ended_at: str | None


class ApprovalShown(TypedDict):
    """`id` is the call's. `reason`: the tool is unsafe, the agent's policy, or the call was interrupted and may
    have happened. `decision` is null while the run waits for it."""

    id: str
    object: Literal["approval"]
    run_id: str
    round: int
    tool: str
    arguments: str
    reason: Reason
    requested_at: str
    expires_at: str
    decision: Decision | None
    decided_by: str | None
    note: str
    decided_at: str | None


class Approvals(TypedDict):
    object: Literal["list"]
    data: list[ApprovalShown]


class RunStarted(TypedDict):
    run_id: str
    conversation_id: str
    message_id: str
    status: Status
    duplicate: bool
    events_url: str
    ws_channel: str


class MessageAccepted(TypedDict):
    run: str
    message: str
    conversation: str
    status: str
    duplicate: bool
    events_url: str
    ws_channel: str


class AttachmentShown(TypedDict):
    """`id` is the document's; `reason` says why it is in its state, empty where all is well."""

    id: str
    object: Literal["attachment"]
    conversation_id: str
    name: str
    media_type: str
    size: int | None
    state: str
    reason: str
    created_at: str


class Attachments(TypedDict):
    object: Literal["list"]
    data: list[AttachmentShown]


class _List(TypedDict):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Agents(_List):
    data: list[AgentShown]


class Versions(_List):
    data: list[VersionShown]


class Conversations(_List):
    data: list[ConversationShown]


class Messages(_List):
    data: list[MessageShown]


class Runs(_List):
    data: list[RunShown]


class Position(TypedDict):
    partition: int
    offset: int


class RunPlace(TypedDict):
    """For the WebSocket gateway: whose the run is, and where its events stand in `agent.events`."""

    run: str | None
    tenant: str
    user: str
    conversation: str
    epoch: int
    last_seq: int
    status: str
    first: Position | None
    last: int | None
    """Offset of the run's terminal event, once that is known."""


def events_url(run_id: str) -> str:
    return f"/api/v1/runs/{run_id}/events"


def agent(found: Agent) -> AgentShown:
    return AgentShown(
        id=found.id,
        object="agent",
        slug=found.slug,
        name=found.name,
        description=found.description,
        version=found.published_version,
        latest_version=found.latest_version,
        model=found.spec.model,
        fallbacks=list(found.spec.fallbacks),
        instructions=found.spec.instructions,
        tools=list(found.spec.tools),
        approval=dict(found.spec.approval),
        knowledge_bases=list(found.spec.knowledge_bases),
        limits=msgspec.to_builtins(found.spec.limits),
        temperature=found.spec.temperature,
        max_output_tokens=found.spec.max_output_tokens,
        created_by=found.created_by,
        created_at=rfc3339(found.created_at),
        updated_at=rfc3339(found.updated_at),
    )


def version(found: Version, published: int | None) -> VersionShown:
    return VersionShown(
        id=str(found.version),
        object="agent.version",
        version=found.version,
        published=found.version == published,
        spec=msgspec.to_builtins(found.spec),
        created_by=found.created_by,
        created_at=rfc3339(found.created_at),
    )


def conversation(found: Conversation) -> ConversationShown:
    return ConversationShown(
        id=found.id,
        object="conversation",
        agent_id=found.agent_id,
        user_id=found.user_id,
        title=found.title,
        turns=found.turns,
        metadata=found.metadata,
        ws_channel=f"conversation:{found.id}",
        created_at=rfc3339(found.created_at),
        updated_at=rfc3339(found.updated_at),
    )


def message(found: Message) -> MessageShown:
    return MessageShown(
        id=found.id,
        object="message",
        conversation_id=found.conversation_id,
        run_id=found.run_id,
        role=found.role,
        text=found.text,
        citations=msgspec.to_builtins(found.citations),
        created_at=rfc3339(found.created_at),
    )


def attachment(found: Attachment) -> AttachmentShown:
    return AttachmentShown(
        id=found.document,
        object="attachment",
        conversation_id=found.conversation_id,
        name=found.name,
        media_type=found.media_type,
        size=found.size,
        state=found.state,
        reason=found.reason,
        created_at=rfc3339(found.created_at),
    )


def run(found: Run) -> RunShown:
    failed = RunError(
        code=found.error_code, message=found.error_message, retryable=found.retryable, provider=found.provider
    )
    return RunShown(
        id=found.id,
        object="run",
        conversation_id=found.conversation_id,
        agent_id=found.agent_id,
        agent_version=found.agent_version,
        model=found.spec.model if found.spec else "",
        status=found.status,
        cancel_requested=found.cancel_by is not None,
        message_id=found.message_id or None,
        incomplete=found.incomplete,
        usage=cast("RunUsage", msgspec.structs.asdict(found.totals)),
        error=failed if found.status == "failed" else None,
        last_seq=found.last_seq,
        epoch=found.epoch,
        metadata=found.metadata,
        events_url=events_url(found.id),
        ws_channel=f"run:{found.id}",
        created_at=rfc3339(found.created_at),
        started_at=None if found.started_at is None else rfc3339(found.started_at),
        ended_at=None if found.ended_at is None else rfc3339(found.ended_at),
    )


def approval(found: Approval) -> ApprovalShown:
    return ApprovalShown(
        id=found.call,
        object="approval",
        run_id=found.run_id,
        round=found.round,
        tool=found.tool,
        arguments=found.arguments,
        reason=found.reason,
        requested_at=rfc3339(found.requested_at),
        expires_at=rfc3339(found.expires_at),
        decision=found.decision,
        decided_by=found.decided_by or None,
        note=found.note,
        decided_at=None if found.decided_at is None else rfc3339(found.decided_at),
    )


def run_started(done: Submitted) -> RunStarted:
    return RunStarted(
        run_id=done.run_id,
        conversation_id=done.conversation_id,
        message_id=done.message_id,
        status=done.status,
        duplicate=done.duplicate,
        events_url=events_url(done.run_id),
        ws_channel=f"run:{done.run_id}",
    )


def message_accepted(done: Submitted) -> MessageAccepted:
    return MessageAccepted(
        run=done.run_id,
        message=done.message_id,
        conversation=done.conversation_id,
        status=done.status,
        duplicate=done.duplicate,
        events_url=events_url(done.run_id),
        ws_channel=f"run:{done.run_id}",
    )


def run_place(found: Run) -> RunPlace:
    return RunPlace(
        run=found.id,
        tenant=found.tenant_id,
        user=found.user_id,
        conversation=found.conversation_id,
        epoch=found.epoch,
        last_seq=found.last_seq,
        status=found.status,
        first=first_position(found),
        last=found.last_offset,
    )


def first_position(found: Run) -> Position | None:
    if found.event_partition is None or found.first_offset is None:
        return None
    return Position(partition=found.event_partition, offset=found.first_offset)
