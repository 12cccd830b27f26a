"""The agent loop: model turns and tool calls of one run, until it has an answer.

pydantic-ai streams and adapts the providers; what makes a run durable is here. Every finished turn and
every tool result is a checkpoint with its usage records in one transaction, and whatever goes wrong
(a provider that breaks off, an instance that dies) goes on from the last of them by the same path.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.messages import FunctionToolResultEvent, ModelRequest, ModelResponse
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings

from core.clock import now
from core.contracts.run_events import Citation
from core.log import Logger
from core.tasks import cancel
from services.agents import metering
from services.agents.approvals import WaitError
from services.agents.calling import RunTools
from services.agents.citations import claims, verified
from services.agents.failures import Failure, LimitError, Policy, cut, failure_of
from services.agents.journal import Journal
from services.agents.metering import Tokens
from services.agents.model import INCOMPLETE, Outcome, RunContext
from services.agents.providers import ProviderError, Providers, Target
from services.agents.saved import SavedCut, SavedTurn, State, dump, encode
from services.agents.speech import Speech, make_storable, size_of, text_of
from services.agents.tools import Tools
from services.agents.tools.memory import MemoryAwayError

POLICY: Final = Policy()
_NO_LIMITS: Final = UsageLimits(request_limit=None)
"""Of pydantic-ai: ours count over takeovers."""
_MOST_TOKENS: Final = 1_000_000_000
"""Of one call."""
_log = Logger("agents.loop")


async def execute(
    run: RunContext, journal: Journal, providers: Providers, tools: Tools, policy: Policy = POLICY
) -> Outcome:
    """Go on with a run from its checkpoints until it ends, or must wait for a person.

    Returns within moments of `journal.cancelled` and at `run.deadline`.

    Raises:
        FencedError: another instance has the run.
    """
    loop = _Loop(run, journal, providers, tools, policy)
    work = asyncio.create_task(loop.run(), name=f"loop {run.run_id}")
    stop = asyncio.create_task(journal.cancelled.wait())
    left = (run.deadline - now()).total_seconds()
    try:
        await asyncio.wait({work, stop}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        by_itself, cancelled = work.done(), stop.done()
    finally:
        await cancel(work, stop)
        if not work.cancelled():
            work.exception()  # a run that is another's says so while it is cancelled: told already
    # Only now: while it is cancelled, a turn still counts what a provider had reported of it.
    if by_itself:
        return work.result()
    if cancelled:
        return loop.outcome(status="cancelled")
    message = f"The run did not end within its {run.spec.limits.seconds} s; raise the limit or ask for less."
    return loop.failed("limit_seconds", message)


class _Loop:
    def __init__(
        self, run: RunContext, journal: Journal, providers: Providers, tools: Tools, policy: Policy
    ) -> None:
        self._run, self._journal, self._providers = run, journal, providers
        self._memory, self._policy = tools.memory, policy
        self._tools = tools.of(run.spec.tools)
        self._state = State(run)
        journal.turn = len(self._state.turns)
        self._toolset = RunTools(run, journal, self._state, self._tools)
        self._agent = Agent(instructions=run.spec.instructions or None, output_type=str)
        self._attempt = 0
        """Requests of this execution, for names that must not meet."""
        self._provider = ""

    async def run(self) -> Outcome:
        models = [self._run.spec.model, *self._run.spec.fallbacks]
        tries = 0
        while True:
            turns = len(self._state.turns)
            try:
                return await self._converse(await self._target(models[0]))
            except LimitError as error:
                return self.failed(error.code, error.message)
            except WaitError as wait:
                return self.outcome(status="waiting", question=wait.question)
            except Failure as failure:
                tries = 1 if len(self._state.turns) > turns else tries + 1
                pause = self._pause(failure, tries)
                _log.warn(
                    "a model turn failed",
                    run=self._run.run_id,
                    model=models[0],
                    code=failure.code,
                    attempt=tries,
                )
                if pause is not None:
                    await asyncio.sleep(pause)
                elif len(models) > 1:
                    models.pop(0)
                    tries = 0
                else:
                    return self.failed(failure.code, failure.message, retryable=failure.retry)

    def outcome(self, **fields: Any) -> Outcome:
        """With the totals of the whole run."""
        return Outcome(totals=self._state.totals, provider=self._provider, **fields)

    def failed(self, code: str, message: str, *, retryable: bool = False) -> Outcome:
        return self.outcome(status="failed", error_code=code, error_message=message, retryable=retryable)

    async def _target(self, name: str) -> Target:
        """Raises: Failure that asking again does not mend."""
        self._provider = name
        try:
            target = await self._providers.resolve(self._run.tenant_id, name)
        except ProviderError as error:
            raise Failure(error.code, error.message, retry=False) from None
        if self._run.spec.limits.cost is not None and target.price is None:
            message = (
                f"{name} has no price, so the agent's cost limit cannot be kept; give the provider a price."
            )
            raise Failure("cost_unknown", message, retry=False)
        return target

    def _pause(self, failure: Failure, tries: int) -> float | None:
        """Seconds until the same model is asked again; None where it is not."""
        if not failure.retry or tries >= self._policy.attempts:
            return None
        if failure.retry_after is not None:
            return failure.retry_after if failure.retry_after <= self._policy.longest_retry_after else None
        longest = min(self._policy.first_pause * float(2 ** (tries - 1)), self._policy.longest_pause)
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - spreads load

    async def _converse(self, target: Target) -> Outcome:
        """Turns with one model until there is an answer. Raises: Failure, LimitError."""
        last = self._state.response
        if last is not None and not last.tool_calls:
            return await self._finish(last)
        async with self._conversation(target) as ai:
            node = ai.next_node
            while True:
                if Agent.is_model_request_node(node):
                    response, node = await self._turn(ai, node, target)
                    if not response.tool_calls:
                        return await self._finish(response)
                elif Agent.is_call_tools_node(node):
                    async with node.stream(ai.ctx) as events:
                        async for event in events:
                            if isinstance(event, FunctionToolResultEvent) and event.part.outcome == "retried":
                                self._toolset.refused(event.part)
                    node = await ai.next(node)
                elif Agent.is_end_node(node):
                    raise cut(target.name)
                else:
                    node = await ai.next(node)

    @asynccontextmanager
    async def _conversation(self, target: Target) -> AsyncIterator[AgentRun[object, str]]:
        try:
            async with self._agent.iter(
                message_history=self._state.conversation,
                model=await self._providers.chat_model(target),
                model_settings=self._settings,
                toolsets=[self._toolset],
                usage_limits=_NO_LIMITS,
            ) as ai:
                yield ai
        except (AgentRunError, UserError) as error:
            raise failure_of(error, target.name) from error

    def _settings(self, _: object) -> ModelSettings:
        """Of the next request."""
        spec, settings = self._run.spec, ModelSettings()
        if spec.temperature is not None:
            settings["temperature"] = spec.temperature
        if spec.max_output_tokens is not None:
            settings["max_tokens"] = max(1, spec.max_output_tokens - self._state.totals.output_tokens)
        return settings

    async def _turn(self, ai: AgentRun[object, str], node: Any, target: Target) -> tuple[ModelResponse, Any]:
        """One request to the model, as events, then as a checkpoint.

        Raises:
            Failure, LimitError, AgentRunError.
        """
        self._check_limits()
        turn = len(self._state.turns) + 1
        self._attempt += 1
        self._journal.turn = turn
        speech = Speech(self._run, self._journal, self._tools, turn, self._attempt)
        room, beyond = self._room(target)
        stream = None
        try:
            async with node.stream(ai.ctx) as stream:
                async for event in stream:
                    speech.on(event)
                    if metering.guessed(0, speech.size).output > room:
                        raise beyond
            response: ModelResponse = stream.response
            make_storable(response)
            # At its limit of tokens, spent on thoughts, an answer may have no word: asked again it would end there again.
            whole = response.finish_reason == "length" or speech.text or response.tool_calls
            if response.finish_reason in (None, "error") or not whole:
                raise cut(target.name)
            if response.finish_reason == "content_filter":
                raise Failure(
                    "content_filter", f"{target.name}: the provider's filter stopped the answer.", retry=False
                )
            following = await ai.next(node)
        except BaseException as error:
            if stream is not None:
                # What we cut off is owed whole; of what broke off, what was reported.
                tokens = self._owed(stream.response, node.request, speech) if error is beyond else None
                await self._bill_cut(target, turn, tokens or _tokens(stream.response))
            raise
        await self._save(target, turn, speech, node.request, response)
        return response, following

    async def _save(
        self, target: Target, turn: int, speech: Speech, request: ModelRequest, response: ModelResponse
    ) -> None:
        tokens = self._owed(response, request, speech)
        records = metering.model_call(self._run, turn, target.provider.name, target.model, tokens)
        self._emit_usage(target, tokens, metering.ids_of(records))
        if response.tool_calls and speech.text:
            self._complete(speech.message, speech.text, ())
        saved = SavedTurn(
            turn=turn,
            model=target.name,
            message=speech.message if speech.text or not response.tool_calls else "",
            calls={call.tool_call_id: speech.call(call.tool_call_id) for call in response.tool_calls},
            tokens=tokens,
            cost=_cost(target, tokens),
            messages=dump([request, response]),
            incomplete=response.finish_reason == "length",
        )
        await self._journal.checkpoint("model", encode(saved), records)
        self._state.add(saved)

    def _owed(self, response: ModelResponse, request: ModelRequest, speech: Speech) -> Tokens:
        """What the provider reported of a request, or what it must have been."""
        tokens = _tokens(response)
        if tokens.reported:
            return tokens
        instructions = len(self._run.spec.instructions.encode())
        return metering.guessed(instructions + size_of([*self._state.messages, request]), speech.size)

    async def _bill_cut(self, target: Target, turn: int, tokens: Tokens) -> None:
        """What is owed of a turn that came to nothing."""
        if not tokens.reported:
            return
        name = f"{self._run.epoch}.{self._attempt}"
        records = metering.model_call(self._run, turn, target.provider.name, target.model, tokens, cut=name)
        self._emit_usage(target, tokens, metering.ids_of(records))
        saved = SavedCut(turn=turn, model=target.name, tokens=tokens, cost=_cost(target, tokens))
        await self._journal.checkpoint("model", encode(saved), records)
        self._state.add(saved)

    def _emit_usage(self, target: Target, tokens: Tokens, ids: list[str]) -> None:
        self._journal.emit(
            "usage",
            {
                "model": target.model,
                "provider": target.provider.name,
                "input": tokens.input,
                "output": tokens.output,
                "cached": tokens.cached,
                "reasoning": tokens.reasoning,
                "usage": ids,
            },
        )

    async def _finish(self, response: ModelResponse) -> Outcome:
        """The answer, with those of its citations that hold."""
        turn = self._state.turns[-1]
        text = text_of(response)
        citations: tuple[Citation, ...] = ()
        # Comparing takes up to a second of an answer that is full of markers: others go on meanwhile.
        wanted = await asyncio.to_thread(claims, text, self._state.passages)
        if wanted and self._memory is not None:
            try:
                citations = await verified(self._run, self._memory, wanted)
            except MemoryAwayError as error:
                self._journal.emit("retrieval.degraded", {"reason": error.reason})
        self._complete(turn.message, text, citations, incomplete=turn.incomplete)
        return self.outcome(
            status="completed",
            message_id=turn.message,
            text=text,
            citations=citations,
            error_code=INCOMPLETE if turn.incomplete else "",
        )

    def _complete(
        self, message: str, text: str, citations: tuple[Citation, ...], *, incomplete: bool = False
    ) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        data = {"message": message, "text": text, "citations": list(citations), "sha256": digest}
        self._journal.emit("message.completed", {**data, "incomplete": True} if incomplete else data)

    def _check_limits(self) -> None:
        limits, used, most = self._run.spec.limits, self._state.totals, self._run.spec.max_output_tokens
        if most is not None and used.output_tokens >= most:
            raise LimitError(
                "limit_output_tokens", f"The run used its {most} tokens of output without an answer."
            )
        if len(self._state.turns) >= limits.steps:
            raise LimitError(
                "limit_steps", f"The run used its {limits.steps} requests to the model without an answer."
            )
        if used.tokens >= limits.tokens:
            raise LimitError("limit_tokens", f"The run used its {limits.tokens} tokens without an answer.")
        if limits.cost is not None and self._state.requests and self._state.cost >= limits.cost:
            raise LimitError("limit_cost", f"The run used its {limits.cost} without an answer.")

    def _room(self, target: Target) -> tuple[int, LimitError]:
        """Tokens of output, by estimate, that one more request may come to, and what the run then ends with."""
        limits = self._run.spec.limits
        room = limits.tokens - self._state.totals.tokens
        beyond = LimitError("limit_tokens", f"The answer went beyond the {limits.tokens} tokens of the run.")
        if limits.cost is not None and target.price is not None:
            token, left = target.price.cost(0, 0, 1), limits.cost - self._state.cost
            if token * room > left:
                room = int(left / token)
                beyond = LimitError("limit_cost", f"The answer went beyond the {limits.cost} of the run.")
        return room, beyond


def _cost(target: Target, tokens: Tokens) -> str:
    price = target.price
    return str(price.cost(tokens.fresh, tokens.cached, tokens.output)) if price else "0"


def _tokens(response: ModelResponse) -> Tokens:
    usage = response.usage
    return Tokens(
        input=_count(usage.input_tokens),
        output=_count(usage.output_tokens),
        cached=_count(usage.cache_read_tokens),
        cache_written=_count(usage.cache_write_tokens),
        input_audio=_count(usage.input_audio_tokens),
        cached_audio=_count(usage.cache_audio_read_tokens),
        output_audio=_count(usage.output_audio_tokens),
        reasoning=_count(usage.details.get("reasoning_tokens", 0)),
    )


def _count(reported: int) -> int:
    """A tenant's own server may report anything: less than nothing would be a credit note."""
    return min(max(0, reported), _MOST_TOKENS)
