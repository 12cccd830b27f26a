"""HTTP of agents, conversations and runs."""

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.responses import Response

from core.ids import is_id
from services.agents import internal, schemas
from services.agents.agent_store import Agent
from services.agents.attachments import Attachments
from services.agents.handlers import Agents, Conversations, etag
from services.agents.internal import Places
from services.agents.streams import after_of, events_of
from services.common.auth import Principal, require
from services.common.body import decode, documented, json_body, parse, parsed, read
from services.common.errors import invalid, not_found
from services.common.events import AgentEvents
from services.common.idempotency import RepeatableOf
from services.common.paging import PageQuery

router = APIRouter()
router.include_router(internal.router)

MAX_BYTES: Final = 4 << 20
_AGENT: Final = re.compile(r"agt_[0-9a-f-]{36}|[a-z0-9-]{1,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with; the app puts it at `app.state.agents`."""

    agents: Agents
    conversations: Conversations
    attachments: Attachments
    places: Places
    events: AgentEvents
    drained: asyncio.Event
    """Set when the process drains: streams end, clients go on elsewhere."""
    heartbeat: float
    """Seconds between comments of a stream."""


async def _service(request: Request) -> Service:
    found: Service = request.app.state.agents
    return found


async def _agent_name(agent: Annotated[str, Path(alias="id", description="`agt_…` or the slug.")]) -> str:
    if _AGENT.fullmatch(agent) is None:
        raise not_found("agent")
    return agent


async def _conversation_id(conversation: Annotated[str, Path(alias="id", description="`cnv_…`")]) -> str:
    if not is_id(conversation):
        raise not_found("conversation")
    return conversation


async def _run_id(run: Annotated[str, Path(alias="id", description="`run_…`")]) -> str:
    if not is_id(run):
        raise not_found("run")
    return run


async def _call_id(call: Annotated[str, Path(description="`tcl_…`")]) -> str:
    if not is_id(call):
        raise not_found("approval")
    return call


ServiceOf = Annotated[Service, Depends(_service)]
AgentName = Annotated[str, Depends(_agent_name)]
ConversationId = Annotated[str, Depends(_conversation_id)]
RunId = Annotated[str, Depends(_run_id)]
CallId = Annotated[str, Depends(_call_id)]
Reader = Annotated[Principal, Depends(require("agents:read"))]
Writer = Annotated[Principal, Depends(require("agents:write"))]
Caller = Annotated[Principal, Depends(require("agents:run"))]
IfMatch = Annotated[
    str | None, Header(description="ETag of the agent as you read it, or `*`.", max_length=64)
]


# --- agents -------------------------------------------------------------------------------------------


@router.post(
    "/api/v1/agents",
    tags=["agents"],
    status_code=201,
    response_model=schemas.AgentShown,
    openapi_extra=documented(schemas.NewAgent),
)
async def create_agent(
    request: Request, service: ServiceOf, principal: Writer, repeatable: RepeatableOf
) -> Response:
    """Make an agent with its version 1, published unless you say otherwise. Honours `Idempotency-Key`."""
    body = await read(request, max_bytes=MAX_BYTES)
    wanted = decode(await parsed(body, max_bytes=MAX_BYTES), schemas.NewAgent)
    return await service.agents.create(principal, wanted, repeatable(principal.subject, body))


@router.get("/api/v1/agents", tags=["agents"], response_model=schemas.Agents)
async def list_agents(service: ServiceOf, principal: Reader, page: PageQuery) -> dict[str, Any]:
    """The agents of your organisation."""
    return await service.agents.page(principal, page)


@router.get("/api/v1/agents/{id}", tags=["agents"], response_model=schemas.AgentShown)
async def get_agent(service: ServiceOf, principal: Reader, agent: AgentName) -> Response:
    """One agent, by id or slug; its ETag is what a change needs."""
    return _tagged(await service.agents.get(principal, agent))


@router.patch(
    "/api/v1/agents/{id}",
    tags=["agents"],
    response_model=schemas.AgentShown,
    openapi_extra=documented(schemas.AgentChange),
)
async def change_agent(
    service: ServiceOf,
    principal: Writer,
    agent: AgentName,
    body: Annotated[schemas.AgentChange, Depends(json_body(schemas.AgentChange, max_bytes=MAX_BYTES))],
    if_match: IfMatch = None,
) -> Response:
    """Change an agent. What it does becomes a new version, which runs use once it is published."""
    return _tagged(await service.agents.change(principal, agent, body, if_match))


@router.post(
    "/api/v1/agents/{id}/publish",
    tags=["agents"],
    response_model=schemas.AgentShown,
    openapi_extra=documented(schemas.Publication),
)
async def publish_agent(
    service: ServiceOf,
    principal: Writer,
    agent: AgentName,
    body: Annotated[schemas.Publication, Depends(json_body(schemas.Publication))],
    if_match: IfMatch = None,
) -> Response:
    """Let runs use a version from now on, a newer or an older one. Open runs keep theirs."""
    return _tagged(await service.agents.publish(principal, agent, body.version, if_match))


@router.delete("/api/v1/agents/{id}", tags=["agents"], status_code=204)
async def delete_agent(
    service: ServiceOf, principal: Writer, agent: AgentName, if_match: IfMatch = None
) -> Response:
    """Delete an agent with all versions. Its conversations stay; open runs end as they would."""
    await service.agents.delete(principal, agent, if_match)
    return Response(status_code=204)


@router.get("/api/v1/agents/{id}/versions", tags=["agents"], response_model=schemas.Versions)
async def list_versions(
    service: ServiceOf, principal: Reader, agent: AgentName, page: PageQuery
) -> dict[str, Any]:
    """All versions, newest first."""
    return await service.agents.versions(principal, agent, page)


@router.get("/api/v1/agents/{id}/versions/{version}", tags=["agents"])
async def get_version(
    service: ServiceOf, principal: Reader, agent: AgentName, version: Annotated[int, Path(ge=1, le=2**31 - 1)]
) -> schemas.VersionShown:
    """One version."""
    return await service.agents.version(principal, agent, version)


# --- conversations ------------------------------------------------------------------------------------


@router.post(
    "/api/v1/conversations",
    tags=["conversations"],
    status_code=201,
    response_model=schemas.ConversationShown,
    openapi_extra=documented(schemas.NewConversation),
)
async def create_conversation(
    request: Request, service: ServiceOf, principal: Caller, repeatable: RepeatableOf
) -> Response:
    """Open a conversation with an agent. Honours `Idempotency-Key`."""
    body = await read(request)
    wanted = decode(parse(body), schemas.NewConversation)
    return await service.conversations.create(principal, wanted, repeatable(principal.subject, body))


@router.get("/api/v1/conversations", tags=["conversations"], response_model=schemas.Conversations)
async def list_conversations(
    service: ServiceOf,
    principal: Reader,
    page: PageQuery,
    agent: Annotated[str | None, Query(max_length=64, description="Only those with it; id or slug.")] = None,
) -> dict[str, Any]:
    """Your conversations; a key sees those of all keys, who holds `org:admin` sees all."""
    if agent is not None and _AGENT.fullmatch(agent) is None:
        raise not_found("agent")
    return await service.conversations.page(principal, page, agent)


@router.get("/api/v1/conversations/{id}", tags=["conversations"])
async def get_conversation(
    service: ServiceOf, principal: Reader, conversation: ConversationId
) -> schemas.ConversationShown:
    """One conversation, without its messages."""
    return await service.conversations.get(principal, conversation)


@router.patch(
    "/api/v1/conversations/{id}",
    tags=["conversations"],
    openapi_extra=documented(schemas.ConversationChange),
)
async def rename_conversation(
    service: ServiceOf,
    principal: Caller,
    conversation: ConversationId,
    body: Annotated[schemas.ConversationChange, Depends(json_body(schemas.ConversationChange))],
) -> schemas.ConversationShown:
    """Give it another title."""
    return await service.conversations.rename(principal, conversation, body.title)


@router.delete("/api/v1/conversations/{id}", tags=["conversations"], status_code=204)
async def delete_conversation(
    service: ServiceOf, principal: Caller, conversation: ConversationId
) -> Response:
    """Delete it with its messages and runs; runs that have not ended are cancelled."""
    await service.conversations.delete(principal, conversation)
    return Response(status_code=204)


@router.get("/api/v1/conversations/{id}/messages", tags=["conversations"], response_model=schemas.Messages)
async def list_messages(
    service: ServiceOf, principal: Reader, conversation: ConversationId, page: PageQuery
) -> dict[str, Any]:
    """What was said, in the order of the talk (`order=asc`) or latest first."""
    return await service.conversations.messages(principal, conversation, page)


@router.post(
    "/api/v1/conversations/{id}/messages",
    tags=["conversations"],
    status_code=202,
    response_model=schemas.MessageAccepted,
    openapi_extra=documented(schemas.NewMessage),
)
async def send_message(
    request: Request,
    service: ServiceOf,
    principal: Caller,
    conversation: ConversationId,
    repeatable: RepeatableOf,
) -> Response:
    """Say something; a run answers it. Both are durable when you read this. Sent again with its
    `client_msg_id` (or `Idempotency-Key`) it is the same message and the same run."""
    body = await read(request, max_bytes=MAX_BYTES)
    wanted = decode(await parsed(body, max_bytes=MAX_BYTES), schemas.NewMessage)
    return await service.conversations.send(
        principal, conversation, wanted, repeatable(principal.subject, body)
    )


@router.post(
    "/api/v1/conversations/{id}/attachments",
    tags=["conversations"],
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The file itself",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def attach(
    request: Request,
    service: ServiceOf,
    principal: Caller,
    conversation: ConversationId,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name.")],
) -> schemas.AttachmentShown:
    """Attach a file: send it as the body. It is durable when you read this, and found by the agents of the
    conversation once its state is `indexed`."""
    if not name.isprintable():
        raise invalid("/query/name", "A file's name has no control characters.")
    stored = await service.attachments.add(
        principal,
        conversation,
        name=name,
        media_type=request.headers.get("content-type", ""),
        body=request.stream(),
    )
    return schemas.attachment(stored)


@router.get("/api/v1/conversations/{id}/attachments", tags=["conversations"])
async def list_attachments(
    service: ServiceOf, principal: Reader, conversation: ConversationId
) -> schemas.Attachments:
    """What was attached, and how far each file is on its way into the index; the first 200."""
    found = await service.attachments.of(principal, conversation)
    return {"object": "list", "data": [schemas.attachment(one) for one in found]}


@router.get("/api/v1/conversations/{id}/runs", tags=["runs"], response_model=schemas.Runs)
async def list_runs(
    service: ServiceOf, principal: Reader, conversation: ConversationId, page: PageQuery
) -> dict[str, Any]:
    """The runs of a conversation."""
    return await service.conversations.runs(principal, conversation, page)


# --- runs ---------------------------------------------------------------------------------------------


@router.post(
    "/api/v1/agents/{id}/runs",
    tags=["runs"],
    status_code=202,
    response_model=schemas.RunStarted,
    openapi_extra=documented(schemas.NewRun),
)
async def start_run(
    request: Request, service: ServiceOf, principal: Caller, agent: AgentName, repeatable: RepeatableOf
) -> Response:
    """Ask an agent, in a new conversation or an old one. The run is durable when you read this; follow
    it at `events_url` or on `ws_channel`. Honours `Idempotency-Key` and `client_msg_id`."""
    body = await read(request, max_bytes=MAX_BYTES)
    wanted = decode(await parsed(body, max_bytes=MAX_BYTES), schemas.NewRun)
    return await service.conversations.start(principal, agent, wanted, repeatable(principal.subject, body))


@router.get("/api/v1/runs/{id}", tags=["runs"])
async def get_run(service: ServiceOf, principal: Reader, run: RunId) -> schemas.RunShown:
    """How far a run is, and what it used."""
    return schemas.run(await service.conversations.run(principal, run))


@router.post("/api/v1/runs/{id}/cancel", tags=["runs"])
async def cancel_run(service: ServiceOf, principal: Caller, run: RunId) -> schemas.RunShown:
    """Ask a run to end; its last event is `run.cancelled`. One that has ended stays as it is."""
    return await service.conversations.cancel(principal, run)


@router.get("/api/v1/runs/{id}/approvals", tags=["runs"])
async def list_approvals(service: ServiceOf, principal: Reader, run: RunId) -> schemas.Approvals:
    """Which calls of tools somebody was asked about, and what they decided, in the order of asking."""
    return await service.conversations.approvals(principal, run)


@router.post(
    "/api/v1/runs/{id}/approvals/{call}", tags=["runs"], openapi_extra=documented(schemas.NewDecision)
)
async def resolve_approval(
    service: ServiceOf,
    principal: Caller,
    run: RunId,
    call: CallId,
    body: Annotated[schemas.NewDecision, Depends(json_body(schemas.NewDecision))],
) -> schemas.ApprovalShown:
    """Allow a call that the run waits for, or do not; the run goes on either way. The same decision again
    changes nothing, another one is a 409. What nobody decides within 24 hours counts as not allowed."""
    return await service.conversations.decide(principal, run, call, body)


@router.get(
    "/api/v1/runs/{id}/events",
    tags=["runs"],
    response_class=Response,
    responses={
        200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
        204: {"description": "The run has ended and you have its last event"},
    },
)
async def run_events(
    request: Request,
    service: ServiceOf,
    principal: Reader,
    run: RunId,
    after_seq: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Events behind this one.")] = None,
) -> Response:
    """The run's events from its first on, then live until its last. `id` is the event's `seq`; come back
    with `Last-Event-ID` and nothing is missing or doubled. A comment comes each 15 seconds
    (`HEADRACE_AGENT_HEARTBEAT_SECONDS`)."""
    after = after_of(request, after_seq)
    found = await service.conversations.run(principal, run)
    return events_of(found, service.events, after, service.drained, service.heartbeat)


def _tagged(found: Agent) -> Response:
    return Response(
        orjson.dumps(schemas.agent(found)), media_type="application/json", headers={"etag": etag(found)}
    )
