"""HTTP of `/v1`."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.database import Database, tenant
from core.tasks import cancel
from services.agents import agent_store
from services.agents.openai import requests, shapes
from services.agents.openai.passthrough import Call
from services.agents.openai.requests import AGENT, flag, model_of, unsupported
from services.agents.openai.runs import NOBODY, Runs, Said, refused
from services.agents.openai.shapes import ALIVE, DONE, Chat, Responses
from services.agents.openai.usage import CallMeter, Reservation, UsageWriter
from services.agents.providers import ProviderError, Providers, Target
from services.agents.store import Window
from services.common import openai_errors
from services.common.auth import Principal, require
from services.common.body import read
from services.common.errors import Problem, not_found
from services.common.events import AgentEvents, StreamLostError
from services.common.paging import MAX_LIMIT, Page
from services.common.spool import Spool
from services.common.token_window import RESERVED, TokenWindow, reserved

router = APIRouter(prefix="/v1", tags=["openai"])
T = TypeVar("T")
_RUN: Final = re.compile(r"run_[0-9a-f-]{36}", re.ASCII)


@dataclass(frozen=True, slots=True)
class OpenAI:
    """What the routes work with; the app puts it at `app.state.openai`."""

    database: Database
    providers: Providers
    runs: Runs
    usage: UsageWriter

    async def target(self, principal: Principal, model: str) -> Target:
        """Raises: Problem 404, 502."""
        try:
            return await self.providers.resolve(principal.tenant_id, model)
        except ProviderError as error:
            raise refused(error) from None

    async def response(self, principal: Principal, run_id: str) -> dict[str, Any]:
        """Raises: Problem 404."""
        found, answer = await self.runs.get(principal, run_id)
        return shapes.response(found, answer, await self.runs.question(principal, found))

    def call(self, reservation: Reservation, target: Target, *, embedding: bool = False) -> Call:
        meter = CallMeter(reservation, target, embedding)
        return Call(self.providers.client(target.provider), target, meter)


@asynccontextmanager
async def open_openai(
    database: Database,
    system: Database,
    providers: Providers,
    events: AgentEvents,
    window: TokenWindow,
    spool: Path,
    heartbeat: float,
) -> AsyncIterator[OpenAI]:
    """For one process.

    Args:
        database, system: roles `app` and `system`.
        spool: folder where what calls used is kept until it is in the outbox.
        heartbeat: seconds without an event after which a stream sends a comment.
    """
    usage = UsageWriter(Spool(spool), system, window)
    usage.start()
    try:
        yield OpenAI(database, providers, Runs(database, providers, events, heartbeat), usage)
    finally:
        await usage.close()


async def _openai(request: Request) -> OpenAI:
    found: OpenAI = request.app.state.openai
    return found


async def _reservation(
    request: Request, openai: "OpenAIOf", principal: Annotated[Principal, Depends(require())]
) -> AsyncIterator[Reservation]:
    """What a call that fails before anybody took it gives back. (Whatever the caller may: first of all.)"""
    kept = Reservation(openai.usage, principal, reserved(request.headers.get(RESERVED)))
    try:
        yield kept
    except BaseException:
        kept.release()
        raise


async def _run_of(response: str) -> str:
    found = shapes.run_id(response)
    if _RUN.fullmatch(found) is None:
        raise not_found("response")
    return found


OpenAIOf = Annotated[OpenAI, Depends(_openai)]
ReservationOf = Annotated[Reservation, Depends(_reservation)]
RunOf = Annotated[str, Depends(_run_of)]
Caller = Annotated[Principal, Depends(require("agents:run"))]
_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.get("/models")
async def list_models(openai: OpenAIOf, principal: Caller) -> dict[str, Any]:
    """The models of all providers as `provider/model`, and your published agents as `agent:<slug>`."""
    models = [
        _model(target.name, target.provider.name)
        for target in await openai.providers.models(principal.tenant_id)
    ]
    after = ""
    with tenant(principal.tenant_id or NOBODY):
        async with openai.database.reader() as connection:
            while True:
                page = Page(limit=MAX_LIMIT, after=after, order="asc")
                found = await agent_store.agents(connection, Window.of(page))
                shown = found[:MAX_LIMIT]
                models += [
                    _model(AGENT + one.slug, "headrace") for one in shown if one.published_version is not None
                ]
                if len(found) <= MAX_LIMIT:
                    return {"object": "list", "data": models}
                after = shown[-1].id


@router.get("/models/{model:path}")
async def get_model(openai: OpenAIOf, principal: Caller, model: str) -> dict[str, Any]:
    """One of them."""
    if model.startswith(AGENT):
        for one in (await list_models(openai, principal))["data"]:
            if one["id"] == model:
                found: dict[str, Any] = one
                return found
        raise not_found("model")
    target = await openai.target(principal, model)
    return _model(target.name, target.provider.name)


@router.post("/chat/completions", openapi_extra=_BODY)
async def chat(request: Request, openai: OpenAIOf, kept: ReservationOf, principal: Caller) -> Response:
    """`agent:<slug>` starts a run and answers with it; another model is its provider's business. A
    caller who leaves a stream ends the work. `metadata.conversation_id` goes on with a conversation,
    which is told the last message alone: it has the others. Where a person must allow a tool, the answer (in a stream its last piece) is the error `approval_required`, and
    the run waits for `POST /api/v1/runs/{id}/approvals/{call}`."""
    body = await requests.document(await read(request, max_bytes=requests.MAX_BYTES))
    model, streamed = model_of(body), flag(body, "stream")
    if not model.startswith(AGENT):
        call = openai.call(kept, await openai.target(principal, model))
        work = call.stream if streamed else call.whole
        return await _unless_left(request, work("/chat/completions", body))
    if body.get("tools"):
        raise unsupported("tools", "an agent has tools of its own; name a model to use yours.")
    requests.refuse_unoffered(body)
    metadata = requests.metadata_of(body)
    conversation, talk = metadata.get("conversation_id"), requests.messages_of(body)
    if conversation:
        talk = requests.Talk(talk.text)
    started = await openai.runs.start(
        principal,
        model,
        talk,
        conversation=conversation,
        metadata=dict(metadata),
        temperature=requests.temperature_of(body),
        most_tokens=requests.most_tokens_of(body, "max_completion_tokens", "max_tokens"),
    )
    kept.release()  # the run accounts for itself
    shape = Chat(started.run_id, model, int(time.time()), include_usage=requests.includes_usage(body))
    headers = {"x-run-id": started.run_id, "x-conversation-id": started.conversation_id}
    if streamed:
        pieces = _chat_pieces(openai.runs, principal, started.run_id, shape)
        return Stream(pieces, headers, _canceller(openai.runs, principal, started.run_id))
    said = await _or_cancel(request, openai.runs, principal, started.run_id)
    if said.done is None or said.done.type != "run.completed":
        problem = shape.problem(said)
        problem.headers |= headers
        raise problem
    return _json(shape.whole(said), headers)


@router.post("/embeddings", openapi_extra=_BODY)
async def embeddings(request: Request, openai: OpenAIOf, kept: ReservationOf, principal: Caller) -> Response:
    """Vectors of texts by a provider's model."""
    body = await requests.document(await read(request, max_bytes=requests.MAX_BYTES))
    target = await openai.target(principal, model_of(body))
    call = openai.call(kept, target, embedding=True)
    return await _unless_left(request, call.whole("/embeddings", body))


@router.post("/responses", openapi_extra=_BODY)
async def create_response(
    request: Request, openai: OpenAIOf, kept: ReservationOf, principal: Caller
) -> Response:
    """A run of an agent or of a bare model. With `background` it goes on whoever leaves; without, a caller
    who leaves ends it. `previous_response_id` goes on with its conversation, or with a copy of it up to that
    response where another has gone on behind it. Where a person must allow a tool,
    the response is `incomplete` (`approval_required`, with the call among its output) until somebody decides;
    then it goes on: read it again, or its stream behind the last number. With `store: false` it ends there."""
    body = await requests.document(await read(request, max_bytes=requests.MAX_BYTES))
    model, streamed = model_of(body), flag(body, "stream")
    background, stored = flag(body, "background"), flag(body, "store", default=True)
    if body.get("tools"):
        raise unsupported("tools", "agents have tools of their own; chat/completions takes yours.")
    requests.refuse_unoffered(body)
    if background and not stored:
        raise unsupported("store", "a background response must be stored to be found again.")
    instructions, previous = body.get("instructions") or "", body.get("previous_response_id")
    own = {"background": background, "model": model, "previous": previous}
    started = await openai.runs.start(
        principal,
        model,
        requests.input_of(body),
        previous=None if previous is None else await _run_of(str(previous)),
        metadata={**requests.metadata_of(body), "openai": own},
        instructions=str(instructions),
        temperature=requests.temperature_of(body),
        most_tokens=requests.most_tokens_of(body, "max_output_tokens"),
    )
    kept.release()
    run_id, headers = started.run_id, {"x-run-id": started.run_id}
    if streamed:
        gone = None if background else _canceller(openai.runs, principal, run_id)
        ended = None if stored else _deleter(openai.runs, principal, run_id)
        return Stream(await _response_pieces(openai.runs, principal, run_id, 0), headers, gone, ended)
    if not background:
        await _or_cancel(request, openai.runs, principal, run_id)
    answer = _json(await openai.response(principal, run_id), headers)
    if not stored:
        await openai.runs.delete(principal, run_id)
    return answer


@router.get("/responses/{response}")
async def get_response(
    openai: OpenAIOf,
    principal: Caller,
    run: RunOf,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """How it is, or its events behind `starting_after`, whoever streamed them before."""
    if not stream:
        return _json(await openai.response(principal, run), {"x-run-id": run})
    return Stream(await _response_pieces(openai.runs, principal, run, starting_after), {"x-run-id": run})


@router.post("/responses/{response}/cancel")
async def cancel_response(openai: OpenAIOf, principal: Caller, run: RunOf) -> Response:
    """End it; the answer is how it ended, or where it stands after a few seconds."""
    await openai.runs.cancel(principal, run)
    try:
        async with asyncio.timeout(5):
            await openai.runs.said(principal, run)
            # The row ends in the transaction that writes the last event.
    except (TimeoutError, StreamLostError):
        pass
    return _json(await openai.response(principal, run), {"x-run-id": run})


@router.delete("/responses/{response}")
async def delete_response(openai: OpenAIOf, principal: Caller, run: RunOf) -> dict[str, Any]:
    """With what was asked and answered."""
    await openai.runs.delete(principal, run)
    return {"id": shapes.response_id(run), "object": "response", "deleted": True}


class Stream(Response):
    """Server-sent events that come when they come.

    Args:
        gone: done when the caller leaves before the end.
        ended: done in any case when it is over.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        gone: Any = None,
        ended: Any = None,
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._gone, self._ended = pieces, gone, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        passing = asyncio.create_task(self._pass(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not passing.done() and self._gone is not None:
                await self._gone()
            if passing.done():
                passing.result()
        finally:
            await cancel(passing, leaving)
            if self._ended is not None:
                await self._ended()

    async def _pass(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chat_pieces(
    runs: Runs, principal: Principal, run_id: str, shape: Chat
) -> AsyncGenerator[bytes, None]:
    said = Said()
    yield shape.first()
    try:
        async with aclosing(runs.events(principal, run_id)) as events:
            async for one in events:
                if one is None:
                    yield ALIVE
                    continue
                if text := said.take(one):
                    yield shape.delta(text)
                if await runs.waits(principal, run_id, one):
                    break
    except StreamLostError:
        # As for a whole answer.
        await runs.cancel(principal, run_id)
        yield shapes.sse(openai_errors.body(_lost(_ASK_AGAIN))) + DONE
        return
    except Problem as error:
        yield shapes.sse(openai_errors.body(error)) + DONE
        return
    yield shape.end(said)


async def _response_pieces(
    runs: Runs, principal: Principal, run_id: str, after: int
) -> AsyncGenerator[bytes, None]:
    """Raises: Problem 404 at once."""
    found, _ = await runs.get(principal, run_id)

    async def pieces() -> AsyncGenerator[bytes, None]:
        shape = Responses(found)
        try:
            async with aclosing(runs.events(principal, run_id)) as events:
                async for one in events:
                    if one is None:
                        yield ALIVE
                        continue
                    # Earlier ones are seen too: what a later one adds depends on them.
                    data = shape.of(one)
                    if one.seq <= after:
                        continue
                    yield data
                    if await runs.waits(principal, run_id, one):
                        yield shape.waiting(one.seq)
                        return
        except (Problem, StreamLostError) as error:
            fault = openai_errors.error(_lost(_READ_ON) if isinstance(error, StreamLostError) else error)
            yield shapes.sse(orjson.dumps({"type": "error", "sequence_number": after, **fault}), "error")

    return pieces()


_READ_ON: Final = "Read on behind the last event you have."
_ASK_AGAIN: Final = "The run was cancelled; ask again."


def _lost(advice: str) -> Problem:
    return Problem(503, "stream_lost", "The stream was lost", advice)


async def _or_cancel(request: Request, runs: Runs, principal: Principal, run_id: str) -> Said:
    """What the run says in the end; a caller who leaves before cancels it, and so does a stream that stays lost."""
    try:
        return await _unless_left(request, runs.said(principal, run_id))
    except _LeftError:
        await runs.cancel(principal, run_id)
        raise
    except StreamLostError as error:
        # Who reads this starts another one.
        await runs.cancel(principal, run_id)
        raise _lost(_ASK_AGAIN) from error


class _LeftError(Problem):
    """Nobody waits for the answer."""

    def __init__(self) -> None:
        super().__init__(499, "caller_gone", "The caller left")


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is ended where the caller leaves. Raises: _LeftError."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _LeftError
    finally:
        await cancel(working, leaving)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _canceller(runs: Runs, principal: Principal, run_id: str) -> Any:
    return lambda: runs.cancel(principal, run_id)


def _deleter(runs: Runs, principal: Principal, run_id: str) -> Any:
    return lambda: runs.delete(principal, run_id)


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _json(content: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers=headers)
