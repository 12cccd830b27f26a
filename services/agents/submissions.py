"""Starting and cancelling runs: what REST, the WebSocket gateway and the OpenAI surface have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from core.ids import new_id
from core.messaging.outbox import enqueue
from services.agents import decisions, store
from services.agents.attachments import base_of, has_any
from services.agents.leases import wake_up
from services.agents.model import AgentSpec, Role, Status, StoredMessage
from services.agents.notes import Identity, traceparent
from services.agents.store import Run, Viewer, identity_of
from services.common.body import decode
from services.common.errors import Problem, invalid, not_found
from services.common.principal import Principal

CANCEL: Final = "headrace_run_cancel"
"""NOTIFY channel: `<run id> <who>`."""
MAX_OPEN: Final = 32
"""Open runs of one conversation; they go one after another."""
MAX_TEXT: Final = 400_000
"""Characters of a message."""
_TOLD: Final = 50_000
"""Characters of it that `run.queued` carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A message that is to be answered by a run.

    Attributes:
        agent_id, agent_version, spec: what answers; `agent_id` empty where `spec` is not an agent's.
        conversation_id: where it is said; None opens a conversation.
        client_msg_id: the caller's name for the message: sent again it is the same message.
        prior: what was said before it: elsewhere, or since the last turn of the conversation.
        copied: what was said in another conversation before that, where one is opened; it is `owner`'s,
            or the caller's where that is empty.
        metadata: the caller's own; kept with the run.
    """

    spec: AgentSpec
    text: str
    agent_id: str = ""
    agent_version: int = 0
    conversation_id: str | None = None
    client_msg_id: str | None = None
    prior: Sequence[tuple[Role, str]] = ()
    copied: Sequence[StoredMessage] = ()
    owner: str = ""
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submitted:
    run_id: str
    message_id: str
    conversation_id: str
    status: Status
    duplicate: bool
    """True where the message had come before: nothing was done, this is the run it has."""


async def submit(connection: AsyncConnection, principal: Principal, wanted: Submission) -> Submitted:
    """Store the message and its run, queued; an instance hears of it after the commit. Role `app`.

    Raises:
        Problem: 404 for a conversation that the caller does not see, 422 `client_msg_id_reused`,
            `message_too_long` and for a `spec` beyond its bounds, 429 `conversation_busy`.
    """
    _check(wanted)
    conversation_id, turns = await _conversation(connection, principal, wanted)
    if wanted.client_msg_id is not None:
        before = await store.sent_before(connection, conversation_id, wanted.client_msg_id)
        if before is not None:
            return await _repeated(connection, before, wanted)
    if await store.count_open(connection, conversation_id) >= MAX_OPEN:
        raise Problem(
            429,
            "conversation_busy",
            "Too many open runs",
            f"The conversation has {MAX_OPEN} runs that have not ended; wait for them or cancel some.",
            headers={"retry-after": "5"},
        )
    spec = wanted.spec
    if spec.knowledge_bases and await has_any(connection, principal.tenant_id, conversation_id):
        own = base_of(principal.tenant_id, conversation_id)
        spec = msgspec.structs.replace(spec, knowledge_bases=(*spec.knowledge_bases[:63], own))
    # Whoever takes the run reads it strictly: one that breaks its own bounds would stop every instance.
    spec = decode(msgspec.to_builtins(spec), AgentSpec)
    run_id, message_id, turn = new_id("run"), new_id("msg"), turns + 1
    await store.insert_run(
        connection,
        run_id=run_id,
        conversation_id=conversation_id,
        turn=turn,
        user_id=principal.subject,
        agent_id=wanted.agent_id,
        agent_version=wanted.agent_version,
        spec=spec,
        metadata=wanted.metadata,
        traceparent=traceparent(),
    )
    if wanted.prior and wanted.conversation_id is not None:
        await store.insert_messages(
            connection, conversation_id, turn, _told_before(wanted), place=-len(wanted.prior)
        )
    said = StoredMessage(message_id, "user", wanted.text)
    await store.insert_messages(
        connection, conversation_id, turn, [said], run_id=run_id, client_msg_id=wanted.client_msg_id
    )
    identity = Identity(
        run_id=run_id,
        tenant_id=principal.tenant_id,
        user=principal.subject,
        agent_id=wanted.agent_id,
        agent_version=wanted.agent_version,
        conversation_id=conversation_id,
        epoch=0,
        traceparent=traceparent(),
    )
    told: dict[str, Any] = {"message": message_id, "text": wanted.text[:_TOLD]}
    if len(wanted.text) > _TOLD:
        told["truncated"] = True
    queued = identity.record(1, 0, "run.queued", {"input": told})
    await enqueue(connection, [queued, wake_up(identity)], principal.tenant_id)
    return Submitted(run_id, message_id, conversation_id, "queued", duplicate=False)


async def cancel(connection: AsyncConnection, principal: Principal, run_id: str) -> Run:
    """Ask a run to end; one that still waits ends here. The run as it was found, ended or not. Role `app`.

    Raises:
        Problem: 404.
    """
    found = await store.run(connection, Viewer.of(principal), run_id, lock=True)
    if found is None:
        raise not_found("run")
    if not found.ended:
        await end(connection, found, principal.subject)
    return found


async def end(connection: AsyncConnection, found: Run, by: str, *, gone: bool = False) -> None:
    """Cancel a locked open run; `gone` where its row goes with this transaction and nobody else can
    write its terminal event."""
    if found.status == "waiting":
        found = await decisions.withdraw(connection, found, by)
    if found.status != "running" or gone:
        told: dict[str, Any] = {"by": by}
        if found.status != "running":
            told["usage"] = msgspec.to_builtins(found.totals)
        record = identity_of(found).record(found.last_seq + 1, 0, "run.cancelled", told)
        await enqueue(connection, [record], found.tenant_id)
    if gone:
        return
    if found.status != "running":
        await store.cancel_idle(connection, found.id, by)
    else:
        await store.ask_to_cancel(connection, found.id, by, CANCEL)


async def _conversation(
    connection: AsyncConnection, principal: Principal, wanted: Submission
) -> tuple[str, int]:
    """The conversation, locked, and how many turns it has."""
    conversation_id = wanted.conversation_id
    if conversation_id is None:
        fresh = new_id("cnv")
        conversation_id = await store.insert_conversation(
            connection,
            conversation_id=fresh,
            agent_id=wanted.agent_id,
            user_id=wanted.owner or principal.subject,
            title=wanted.title or title_of(wanted.text),
            metadata={},
            opened_by=wanted.client_msg_id,
        )
        if conversation_id == fresh and (wanted.copied or wanted.prior):
            copies = [msgspec.structs.replace(one, id=new_id("msg")) for one in wanted.copied]
            await store.insert_messages(connection, fresh, 0, copies + _told_before(wanted))
    found = await store.conversation(connection, Viewer.of(principal), conversation_id, lock=True)
    if found is None:
        raise not_found("conversation")
    return found.id, found.turns


def _told_before(wanted: Submission) -> list[StoredMessage]:
    return [StoredMessage(new_id("msg"), role, text) for role, text in wanted.prior]


async def _repeated(connection: AsyncConnection, before: store.Message, wanted: Submission) -> Submitted:
    if before.text != wanted.text:
        raise invalid(
            "/client_msg_id",
            f"The message {wanted.client_msg_id} came before with another text; give each message its own.",
            code="client_msg_id_reused",
        )
    assert before.run_id is not None, "what a client sends has a run"
    status = await store.status_of(connection, before.run_id)
    return Submitted(before.run_id, before.id, before.conversation_id, status, duplicate=True)


def title_of(text: str) -> str:
    """The first line, short: how a conversation is listed until somebody names it."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"


def _check(wanted: Submission) -> None:
    for text in (wanted.text, *(text for _, text in wanted.prior)):
        if len(text) > MAX_TEXT:
            raise Problem(
                422,
                "message_too_long",
                "The message is too long",
                f"A message has {len(text)} characters; {MAX_TEXT} is the most. Attach a document instead.",
            )
