"""What the routes do: agents, conversations and runs of the caller's organisation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.audit import NO_TENANT
from core.database import Database, tenant
from core.ids import new_id
from services.agents import (
    agent_store,
    attachments,
    decisions,
    remembered,
    schemas,
    store,
    submissions,
)
from services.agents.agent_store import Agent
from services.agents.model import AgentSpec
from services.agents.store import Conversation, Run, Viewer, Window
from services.agents.submissions import Submission
from services.common.body import decode
from services.common.errors import Problem, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal

_ANY: Final = "*"


class Agents:
    """Agents and their versions. Everybody of an organisation who holds the scope sees all of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, principal: Principal, body: schemas.NewAgent, repeatable: Repeatable) -> Response:
        """201. Raises: Problem 409 `slug_taken`."""
        async with self._writer(principal) as connection:
            return await once(connection, repeatable, lambda: self._create(connection, principal, body))

    async def page(self, principal: Principal, page: Page) -> dict[str, Any]:
        async with self._reader(principal) as connection:
            found = await agent_store.agents(connection, Window.of(page))
        return listing([schemas.agent(one) for one in found], page)

    async def get(self, principal: Principal, id_or_slug: str) -> Agent:
        """Raises: Problem 404."""
        # The newest state: its ETag stands for it in the caller's next change.
        async with self._reader(principal, primary=True) as connection:
            return await existing(connection, id_or_slug)

    async def change(
        self, principal: Principal, id_or_slug: str, body: schemas.AgentChange, if_match: str | None
    ) -> Agent:
        """Raises: Problem 404, 409 `slug_taken`, 412 `changed_meanwhile`, 422, 428 `if_match_required`."""
        async with self._writer(principal) as connection:
            found = await self._locked(connection, id_or_slug, if_match)
            spec = decode(body.applied_to(found.spec), AgentSpec)
            try:
                changed = await agent_store.change_agent(
                    connection,
                    found,
                    slug=found.slug if body.slug is msgspec.UNSET else body.slug,
                    name=found.name if body.name is msgspec.UNSET else body.name,
                    description=found.description if body.description is msgspec.UNSET else body.description,
                    spec=spec,
                    publish=0 if body.publish else None,
                    by=principal.subject,
                )
            except agent_store.SlugTakenError as error:
                raise _slug_taken(error) from None
            await _record(connection, principal, "agent.update", changed)
            return changed

    async def publish(
        self, principal: Principal, id_or_slug: str, version: int, if_match: str | None
    ) -> Agent:
        """Let runs use a version. Raises: Problem 404, 412 `changed_meanwhile`, 428 `if_match_required`."""
        async with self._writer(principal) as connection:
            found = await self._locked(connection, id_or_slug, if_match)
            if await agent_store.version(connection, found.id, version) is None:
                raise not_found("version")
            changed = await agent_store.change_agent(
                connection,
                found,
                slug=found.slug,
                name=found.name,
                description=found.description,
                spec=found.spec,
                publish=version,
                by=principal.subject,
            )
            await _record(connection, principal, "agent.publish", changed)
            return changed

    async def delete(self, principal: Principal, id_or_slug: str, if_match: str | None) -> None:
        """Raises: Problem 404, 412 `changed_meanwhile`."""
        async with self._writer(principal) as connection:
            found = await self._locked(connection, id_or_slug, if_match or _ANY)
            await agent_store.delete_agent(connection, found.id)
            await _record(connection, principal, "agent.delete", found)

    async def versions(self, principal: Principal, id_or_slug: str, page: Page) -> dict[str, Any]:
        """Newest first; cursors are numbers. Raises: Problem 404."""
        below = int(page.after) if page.after.isdecimal() and len(page.after) < 10 else None
        async with self._reader(principal, primary=True) as connection:
            found = await existing(connection, id_or_slug)
            listed = await agent_store.versions(connection, found.id, page.fetch, below)
        return listing([schemas.version(one, found.published_version) for one in listed], page)

    async def version(self, principal: Principal, id_or_slug: str, number: int) -> schemas.VersionShown:
        """Raises: Problem 404."""
        async with self._reader(principal, primary=True) as connection:
            found = await existing(connection, id_or_slug)
            one = await agent_store.version(connection, found.id, number)
        if one is None:
            raise not_found("version")
        return schemas.version(one, found.published_version)

    async def _create(
        self, connection: AsyncConnection, principal: Principal, body: schemas.NewAgent
    ) -> Answer:
        try:
            created = await agent_store.insert_agent(
                connection,
                agent_id=new_id("agt"),
                slug=body.slug,
                name=body.name,
                description=body.description,
                spec=body.spec,
                publish=body.publish,
                by=principal.subject,
            )
        except agent_store.SlugTakenError as error:
            raise _slug_taken(error) from None
        await _record(connection, principal, "agent.create", created)
        return Answer(201, schemas.agent(created))

    async def _locked(self, connection: AsyncConnection, id_or_slug: str, if_match: str | None) -> Agent:
        found = await existing(connection, id_or_slug, lock=True)
        if if_match is None:
            raise Problem(
                428,
                "if_match_required",
                "If-Match is missing",
                "Read the agent and send its ETag as If-Match, so that no other change is lost.",
            )
        if if_match.strip() not in {_ANY, etag(found)}:
            raise Problem(
                412,
                "changed_meanwhile",
                "The agent is another by now",
                f"The agent {found.slug} has the ETag {etag(found)}; read it again and repeat your change.",
            )
        return found

    @asynccontextmanager
    async def _writer(self, principal: Principal) -> AsyncIterator[AsyncConnection]:
        with tenant(principal.tenant_id or NO_TENANT):
            async with self._database.writer() as connection:
                yield connection

    @asynccontextmanager
    async def _reader(self, principal: Principal, *, primary: bool = False) -> AsyncIterator[AsyncConnection]:
        with tenant(principal.tenant_id or NO_TENANT):
            async with self._database.reader(primary=primary) as connection:
                yield connection


class Conversations:
    """Conversations with their messages, and the runs that answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, principal: Principal, body: schemas.NewConversation, repeatable: Repeatable
    ) -> Response:
        """201, without a message. Raises: Problem 404 for the agent."""
        async with self._writer(principal) as connection:
            return await once(connection, repeatable, lambda: self._create(connection, principal, body))

    async def page(self, principal: Principal, page: Page, agent: str | None) -> dict[str, Any]:
        """Raises: Problem 404 for the agent."""
        async with self._reader(principal) as connection:
            agent_id = None
            if agent is not None:
                agent_id = agent if agent.startswith("agt_") else (await existing(connection, agent)).id
            found = await store.conversations(connection, Viewer.of(principal), Window.of(page), agent_id)
        return listing([schemas.conversation(one) for one in found], page)

    async def get(self, principal: Principal, conversation_id: str) -> schemas.ConversationShown:
        """Raises: Problem 404."""
        async with self._reader(principal) as connection:
            return schemas.conversation(await _seen(connection, principal, conversation_id))

    async def rename(
        self, principal: Principal, conversation_id: str, title: str
    ) -> schemas.ConversationShown:
        """Raises: Problem 404."""
        async with self._writer(principal) as connection:
            await _seen(connection, principal, conversation_id, lock=True)
            await store.rename_conversation(connection, conversation_id, title)
            return schemas.conversation(await _seen(connection, principal, conversation_id))

    async def delete(self, principal: Principal, conversation_id: str) -> None:
        """Messages, runs, checkpoints, attachments and what memory kept of its turns go; runs that have not
        ended are cancelled. Raises: Problem 404."""
        async with self._writer(principal) as connection:
            found = await _seen(connection, principal, conversation_id, lock=True)
            for run in await store.open_runs(connection, conversation_id):
                await submissions.end(connection, run, principal.subject, gone=True)
            await attachments.delete_all(connection, principal.tenant_id, conversation_id)
            await remembered.forget(connection, principal.tenant_id, conversation_id)
            await store.delete_conversation(connection, conversation_id)
            await audit.record(
                connection,
                action="conversation.delete",
                actor=principal.subject,
                tenant_id=principal.tenant_id,
                target=conversation_id,
                outcome="success",
                detail={"user": found.user_id, "turns": str(found.turns)},
            )

    async def messages(self, principal: Principal, conversation_id: str, page: Page) -> dict[str, Any]:
        """In the order of the talk. Raises: Problem 404."""
        async with self._reader(principal) as connection:
            await _seen(connection, principal, conversation_id)
            found = await store.messages(connection, conversation_id, page)
        return listing([schemas.message(one) for one in found], page)

    async def send(
        self, principal: Principal, conversation_id: str, body: schemas.NewMessage, repeatable: Repeatable
    ) -> Response:
        """202 once message and run are durable.

        Raises:
            Problem: 404, 409 `agent_deleted`, `agent_not_published`, and as `submissions.submit`.
        """

        async def work() -> Answer:
            found = await _seen(connection, principal, conversation_id)
            if body.agent is None and not found.agent_id:
                raise _agent_gone()
            try:
                agent = await existing(connection, body.agent or found.agent_id)
            except Problem:
                raise (_agent_gone() if body.agent is None else not_found("agent")) from None
            wanted = submission(agent, body.text, conversation_id, body.client_msg_id)
            return Answer(
                202, schemas.message_accepted(await submissions.submit(connection, principal, wanted))
            )

        async with self._writer(principal) as connection:
            return await once(connection, repeatable, work)

    async def start(
        self, principal: Principal, agent: str, body: schemas.NewRun, repeatable: Repeatable
    ) -> Response:
        """202 once message and run are durable.

        Raises:
            Problem: 404, 409 `agent_not_published`, and as `submissions.submit`.
        """

        async def work() -> Answer:
            found = await existing(connection, agent)
            wanted = submission(found, body.input, body.conversation_id, body.client_msg_id, body.metadata)
            return Answer(202, schemas.run_started(await submissions.submit(connection, principal, wanted)))

        async with self._writer(principal) as connection:
            return await once(connection, repeatable, work)

    async def run(self, principal: Principal, run_id: str) -> Run:
        """Raises: Problem 404."""
        async with self._reader(principal) as connection:
            found = await store.run(connection, Viewer.of(principal), run_id)
        if found is None:
            raise not_found("run")
        return found

    async def runs(self, principal: Principal, conversation_id: str, page: Page) -> dict[str, Any]:
        """Raises: Problem 404."""
        async with self._reader(principal) as connection:
            await _seen(connection, principal, conversation_id)
            found = await store.runs(connection, Viewer.of(principal), conversation_id, Window.of(page))
        return listing([schemas.run(one) for one in found], page)

    async def approvals(self, principal: Principal, run_id: str) -> schemas.Approvals:
        """Raises: Problem 404."""
        async with self._reader(principal) as connection:
            found = await store.run(connection, Viewer.of(principal), run_id)
            if found is None:
                raise not_found("run")
            asked = await decisions.of_run(connection, run_id)
        return {"object": "list", "data": [schemas.approval(one) for one in asked]}

    async def decide(
        self, principal: Principal, run_id: str, call: str, body: schemas.NewDecision
    ) -> schemas.ApprovalShown:
        """Raises: Problem 404, 409 `approval_resolved` and `approval_asked_again`."""
        async with self._writer(principal) as connection:
            found = await store.run(connection, Viewer.of(principal), run_id, lock=True)
            if found is None:
                raise not_found("run")
            decided = await decisions.decide(
                connection,
                found,
                call,
                body.round,
                decision=body.decision,
                by=principal.subject,
                note=body.note,
            )
        return schemas.approval(decided)

    async def cancel(self, principal: Principal, run_id: str) -> schemas.RunShown:
        """Ask it to end; done already where it has ended. Raises: Problem 404."""
        async with self._writer(principal) as connection:
            await submissions.cancel(connection, principal, run_id)
            found = await store.run(connection, Viewer.of(principal), run_id)
        if found is None:
            raise not_found("run")
        return schemas.run(found)

    async def _create(
        self, connection: AsyncConnection, principal: Principal, body: schemas.NewConversation
    ) -> Answer:
        agent = await existing(connection, body.agent)
        conversation_id = await store.insert_conversation(
            connection,
            conversation_id=new_id("cnv"),
            agent_id=agent.id,
            user_id=principal.subject,
            title=body.title,
            metadata=dict(body.metadata),
            opened_by=None,
        )
        return Answer(201, schemas.conversation(await _seen(connection, principal, conversation_id)))

    @asynccontextmanager
    async def _writer(self, principal: Principal) -> AsyncIterator[AsyncConnection]:
        with tenant(principal.tenant_id or NO_TENANT):
            async with self._database.writer() as connection:
                yield connection

    @asynccontextmanager
    async def _reader(self, principal: Principal) -> AsyncIterator[AsyncConnection]:
        """On the primary: a run that another instance started, and an answer that a client was told of, must be
        there; who loads the state after a lost stream goes on from it."""
        with tenant(principal.tenant_id or NO_TENANT):
            async with self._database.reader(primary=True) as connection:
                yield connection


def submission(
    agent: Agent,
    text: str,
    conversation_id: str | None = None,
    client_msg_id: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Submission:
    """A message to an agent, answered by its published version. Raises: Problem 409 `agent_not_published`."""
    if agent.published_version is None or agent.published is None:
        raise Problem(
            409,
            "agent_not_published",
            "The agent is not published",
            f"No version of {agent.slug} is published; publish one and send the message again.",
        )
    return Submission(
        agent_id=agent.id,
        agent_version=agent.published_version,
        spec=agent.published,
        text=text,
        conversation_id=conversation_id,
        client_msg_id=client_msg_id,
        metadata=dict(metadata or {}),
    )


async def existing(connection: AsyncConnection, id_or_slug: str, *, lock: bool = False) -> Agent:
    """Raises: Problem 404."""
    found = await agent_store.agent(connection, id_or_slug, lock=lock)
    if found is None:
        raise not_found("agent")
    return found


def etag(found: Agent) -> str:
    """Changes with every change of the agent."""
    return f'"{found.revision}"'


async def _seen(
    connection: AsyncConnection, principal: Principal, conversation_id: str, *, lock: bool = False
) -> Conversation:
    found = await store.conversation(connection, Viewer.of(principal), conversation_id, lock=lock)
    if found is None:
        raise not_found("conversation")
    return found


async def _record(connection: AsyncConnection, principal: Principal, action: str, agent: Agent) -> None:
    await audit.record(
        connection,
        action=action,
        actor=principal.subject,
        tenant_id=principal.tenant_id,
        target=agent.id,
        outcome="success",
        detail={"version": str(agent.latest_version), "published": str(agent.published_version or 0)},
    )


def _slug_taken(error: agent_store.SlugTakenError) -> Problem:
    return Problem(
        409, "slug_taken", "Slug taken", f"There is an agent {error} already; choose another slug."
    )


def _agent_gone() -> Problem:
    return Problem(
        409,
        "agent_deleted",
        "The agent is gone",
        "The conversation's agent was deleted; name another one in `agent`.",
    )
