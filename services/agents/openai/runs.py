"""Runs as OpenAI's clients see them: started, followed, put together again from their events."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from core.contracts.agents import TERMINAL, AgentEvent, event
from core.contracts.run_events import Totals
from core.database import Database, tenant
from core.eventlog.api import LogUnavailableError
from services.agents import decisions, remembered, store, submissions
from services.agents.decisions import Approval
from services.agents.handlers import existing, submission
from services.agents.model import AgentSpec
from services.agents.openai.branching import Place, behind
from services.agents.openai.requests import AGENT, Talk
from services.agents.openai.store import delete_run
from services.agents.providers import ProviderError, Providers
from services.agents.store import Message, Run, Viewer
from services.agents.streams import span_of
from services.agents.submissions import Submission, Submitted
from services.common.auth import Principal
from services.common.errors import Problem, not_found
from services.common.events import AgentEvents, StreamLostError
from services.common.events.pauses import with_pauses

NOBODY: Final = "-"
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.5
"""Seconds until events whose stream was lost are followed again."""


def refused(error: ProviderError) -> Problem:
    """The problem for a model that cannot be called."""
    status = 404 if error.code in {"unknown_model", "unknown_provider"} else 502
    code = "model_not_found" if status == 404 else error.code
    return Problem(status, code, "No such model", error.message)


@dataclass(slots=True)
class Said:
    """What a run has said so far, by its events in order. A turn that is repeated after a takeover or a
    failure begins anew; a reader who has the beginning already gets only what is new of it."""

    text: str = ""
    message: str = ""
    given: str = ""
    """What readers of deltas have of the current turn."""
    usage: Totals = field(default_factory=Totals)
    done: AgentEvent | None = None
    asks: AgentEvent | None = None
    """What a person is asked and has not answered."""
    citations: list[dict[str, Any]] = field(default_factory=list)
    incomplete: bool = False
    """The answer ends at a limit of tokens."""

    def take(self, one: AgentEvent) -> str:
        """The text that this event adds for a reader of deltas."""
        data = one.data
        if one.type == "message.delta":
            if data["message"] != self.message or not data["offset"]:
                self.message, self.text = data["message"], ""
            self.text += data["text"]
            return self._new()
        if one.type in {"tool_call.started", "tool_result"}:
            self.given = self.text = ""
        elif one.type == "message.completed":
            self.message, self.text, self.citations = data["message"], data["text"], data["citations"]
            self.incomplete = bool(data.get("incomplete"))
            return self._new()
        elif one.type == "approval.requested":
            self.asks = one
        elif one.type == "approval.resolved":
            self.asks = None
        elif one.type in TERMINAL:
            self.done, self.usage = one, msgspec.convert(data.get("usage") or {}, Totals)
        return ""

    def _new(self) -> str:
        if not self.text.startswith(self.given):
            return ""  # told differently the second time: the whole text comes at the end
        added = self.text[len(self.given) :]
        self.given = self.text
        return added


async def unbroken(
    follow: Callable[[int], AsyncGenerator[AgentEvent | None, None]], after: int
) -> AsyncGenerator[AgentEvent | None, None]:
    """The events behind `after`, followed again behind the last one where their stream is lost: the run goes
    on meanwhile, and a caller who is told to try again would start a second one.

    Raises:
        StreamLostError: again and again, without an event between.
    """
    failures = 0
    while True:
        try:
            async with aclosing(follow(after)) as events:
                async for one in events:
                    if one is not None:
                        after, failures = one.seq, 0
                    yield one
        except (StreamLostError, LogUnavailableError) as error:
            failures += 1
            if failures >= _ATTEMPTS:
                raise StreamLostError("log_unavailable") from error
        else:
            return
        await asyncio.sleep(_PAUSE)


class Runs:
    """What the routes do with runs."""

    def __init__(
        self, database: Database, providers: Providers, events: AgentEvents, heartbeat: float
    ) -> None:
        """`heartbeat`: seconds without an event after which a follower is given None."""
        self._database, self._providers, self._events = database, providers, events
        self._heartbeat = heartbeat

    async def start(
        self,
        principal: Principal,
        model: str,
        talk: Talk,
        *,
        conversation: str | None = None,
        previous: str | None = None,
        metadata: dict[str, Any] | None = None,
        instructions: str = "",
        temperature: float | None = None,
        most_tokens: int | None = None,
    ) -> Submitted:
        """Durable when it returns.

        Args:
            conversation: where it is said.
            previous: instead of it, the run behind which it is said.
            instructions: for this run alone, behind an agent's own.
            temperature: instead of an agent's.
            most_tokens: of output; an agent's own holds too.

        Raises:
            Problem: 404 for an agent, model, run or conversation that is not there; as `submissions.submit`
                and `branching.behind`.
        """
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                if model.startswith(AGENT):
                    agent = await existing(connection, model.removeprefix(AGENT))
                    wanted = submission(agent, talk.text)
                    own = wanted.spec.instructions
                    both = f"{own}\n\n{instructions}" if own and instructions else own or instructions
                    most = [one for one in (most_tokens, wanted.spec.max_output_tokens) if one is not None]
                    spec = msgspec.structs.replace(
                        wanted.spec,
                        instructions=both,
                        temperature=wanted.spec.temperature if temperature is None else temperature,
                        max_output_tokens=min(most, default=None),
                    )
                    number, agent_id = wanted.agent_version, wanted.agent_id
                else:
                    try:
                        target = await self._providers.resolve(principal.tenant_id, model)
                    except ProviderError as error:
                        raise refused(error) from None
                    spec = AgentSpec(
                        model=target.name,
                        instructions=instructions,
                        temperature=temperature,
                        max_output_tokens=most_tokens,
                    )
                    number, agent_id = 0, ""
                place = Place(conversation)
                if previous is not None:
                    place = await behind(connection, Viewer.of(principal), previous)
                return await submissions.submit(
                    connection,
                    principal,
                    Submission(
                        spec=spec,
                        text=talk.text,
                        agent_id=agent_id,
                        agent_version=number,
                        conversation_id=place.conversation_id,
                        prior=talk.prior,
                        copied=place.said,
                        owner=place.owner,
                        title=place.title,
                        metadata=metadata or {},
                    ),
                )

    async def get(self, principal: Principal, run_id: str) -> tuple[Run, Message | None]:
        """The run and its answer. Raises: Problem 404."""
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                found = await store.run(connection, Viewer.of(principal), run_id)
                if found is None:
                    raise not_found("response")
                answer = await store.message(connection, found.message_id) if found.message_id else None
        return found, answer

    async def question(self, principal: Principal, found: Run) -> Approval | None:
        """What a run that was just read waits for."""
        if found.status != "waiting":
            return None
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                return await decisions.open_of(connection, found.id)

    async def waits(self, principal: Principal, run_id: str, one: AgentEvent | None) -> bool:
        """Whether the run stands still behind this event, which only a person can end. Raises: Problem 404."""
        if one is None or one.type != "approval.requested":
            return False
        found, _ = await self.get(principal, run_id)
        return found.status == "waiting" and found.last_seq == one.seq

    async def cancel(self, principal: Principal, run_id: str) -> None:
        """Ask it to end. Raises: Problem 404."""
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await submissions.cancel(connection, principal, run_id)

    async def delete(self, principal: Principal, run_id: str) -> None:
        """The run with its messages; the conversation too, where nothing else was said in it. Raises: Problem 404."""
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                viewer = Viewer.of(principal)
                found = await store.run(connection, viewer, run_id)
                # The conversation before the run, as everywhere; nobody says more in it meanwhile.
                if found is not None:
                    await store.conversation(connection, viewer, found.conversation_id, lock=True)
                    found = await store.run(connection, viewer, run_id, lock=True)
                if found is None:
                    raise not_found("response")
                if not found.ended:
                    await submissions.end(connection, found, principal.subject, gone=True)
                await remembered.forget(connection, principal.tenant_id, found.conversation_id, run_id)
                await delete_run(connection, found.id, found.conversation_id)

    async def events(
        self, principal: Principal, run_id: str, after: int = 0
    ) -> AsyncGenerator[AgentEvent | None, None]:
        """The run's events from its first to its last; None where nothing came for a while.

        Raises:
            Problem: 404, 410 where they are gone.
            StreamLostError: the log stays away.
        """
        async with aclosing(unbroken(lambda at: self._followed(principal, run_id, at), after)) as events:
            async for one in events:
                yield one

    async def _followed(
        self, principal: Principal, run_id: str, after: int
    ) -> AsyncGenerator[AgentEvent | None, None]:
        """Raises: as `events`, also where another try may help."""
        found, _ = await self.get(principal, run_id)
        async with self._events.follow(f"run:{run_id}", (0, after), span_of(found)) as stream:
            if not stream.recovered:
                if stream.reason in {"expired", "topic_changed"}:
                    raise Problem(410, "events_expired", "The events are gone", "Events are kept for 7 days.")
                raise StreamLostError(stream.reason)
            async with aclosing(with_pauses(stream.entries(), self._heartbeat)) as entries:
                async for entry in entries:
                    yield None if entry is None else event(entry.raw)

    async def said(self, principal: Principal, run_id: str) -> Said:
        """All of it, at its end, or until it waits for a person."""
        whole = Said()
        async with aclosing(self.events(principal, run_id)) as events:
            async for one in events:
                if one is not None:
                    whole.take(one)
                if await self.waits(principal, run_id, one):
                    break
        return whole
