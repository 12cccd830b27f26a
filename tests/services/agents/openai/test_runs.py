"""Streams that are lost on their way, and failures that must not be paid again."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI, OpenAIError

from core.clock import now
from core.contracts.agents import AgentEvent
from core.eventlog.api import LogUnavailableError
from services.agents.openai.routes import _chat_pieces
from services.agents.openai.runs import unbroken
from services.agents.openai.shapes import Chat, failure
from services.common import openai_errors
from services.common.events import StreamLostError
from services.common.principal import Principal
from tests.servers import free_port


def event(seq: int, kind: str = "message.delta", data: dict[str, Any] | None = None) -> AgentEvent:
    return AgentEvent(
        id=f"run_1:1:{seq}", type=kind, subject="run_1", time=now(), tenant="org_1", user="usr_1", agent="",
        agentversion=0, conversation="cnv_1", seq=seq, epoch=1, turn=1, data=data or {}, traceparent="",
    )  # fmt: skip


async def test_a_lost_stream_goes_on_behind_the_last_event() -> None:
    asked: list[int] = []

    async def follow(after: int) -> AsyncGenerator[AgentEvent | None, None]:
        asked.append(after)
        if len(asked) == 2:
            raise LogUnavailableError("away")
        for seq in range(after + 1, 9):
            yield None
            yield event(seq)
            if seq in {3, 5} and len(asked) < 5:
                raise StreamLostError("restarted")

    seen = [one.seq async for one in unbroken(follow, 1) if one is not None]
    assert seen == list(range(2, 9))
    assert asked == [1, 3, 3, 5]


async def test_a_stream_that_is_lost_again_and_again_is_given_up() -> None:
    asked: list[int] = []

    async def follow(after: int) -> AsyncGenerator[AgentEvent | None, None]:
        asked.append(after)
        yield None
        raise StreamLostError("restarted")

    with pytest.raises(StreamLostError):
        [one async for one in unbroken(follow, 7)]
    assert asked == [7] * 5


class Lost:
    """Runs whose stream is lost behind its first word."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def events(self, _: Principal, run_id: str) -> AsyncGenerator[AgentEvent | None, None]:
        yield event(1, data={"message": "msg_1", "offset": 0, "text": "One"})
        raise StreamLostError("log_unavailable")

    async def waits(self, *_: object) -> bool:
        return False

    async def cancel(self, _: Principal, run_id: str) -> None:
        self.cancelled.append(run_id)


async def test_whoever_is_told_to_ask_again_leaves_no_run_behind() -> None:
    runs, who = Lost(), Principal(tenant_id="org_1", subject="usr_1", kind="user")
    shape = Chat("run_1", "agent:x", 0, include_usage=False)
    told = b"".join([piece async for piece in _chat_pieces(runs, who, "run_1", shape)])  # type: ignore[arg-type]
    assert b'"content":"One"' in told
    assert told.endswith(b"data: [DONE]\n\n")
    error = json.loads(told.split(b"data: ")[-2])["error"]
    assert (error["code"], error["message"]) == ("stream_lost", "The run was cancelled; ask again.")
    assert runs.cancelled == ["run_1"]


@pytest.mark.parametrize(
    ("kind", "data", "requests"),
    [
        ("run.cancelled", {"by": "usr_2"}, 1),
        ("run.failed", {"code": "limit_tokens", "message": "Too much.", "retryable": False}, 1),
        ("run.failed", {"code": "provider_error", "message": "Later.", "retryable": True}, 2),
    ],
)
async def test_the_sdk_repeats_only_what_may_help(kind: str, data: dict[str, Any], requests: int) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        problem = failure(event(1, kind, data))
        return web.Response(status=problem.status, body=openai_errors.body(problem), headers=problem.headers)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with AsyncOpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", max_retries=1) as client:
        with pytest.raises(OpenAIError):
            await client.chat.completions.create(model="agent:x", messages=[])
    await runner.cleanup()
    assert len(asked) == requests
