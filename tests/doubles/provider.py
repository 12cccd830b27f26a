"""A provider of models that answers as `local-extractive` does, replays recorded replies, and misbehaves on demand.

What it does is chosen by the model's name, or for the next requests by `PUT /control {"next": […]}`:

    rate-limited     429 with Retry-After
    broken           500
    unauthorized     401
    too-long         400 context_length_exceeded
    cut              a stream that is reset half way
    reported-cut     the same, after usage was reported
    clean-end        a stream that ends in order, without finish_reason, usage and [DONE]
    bad-json         a stream with a line that is not JSON
    unreported       an answer without usage; `unreported=200` of 200 words
    long             an answer that ends at the limit of tokens
    spent            the same without a word; `thinking:spent` after thoughts, which used the limit up
    hang             headers, then nothing
    empty            an answer without a word
    malformed        a tool call whose arguments are not JSON
    held             as `slow`, which stands still after 9 words until the double is `released`, for others by
                     `PUT /control {"release": true}`; in Anthropic's shape after two
    slow             words every 30 ms; `slow=200` for 200 of them
    calls=NAME       a call of the tool NAME with `{"n": turn}`, then an answer; `calls=NAME:JSON` with
                     these arguments, `calls=NAME,NAME` several in one turn
    told             what it was asked, as JSON: `messages` of role and text, `temperature`, `max_tokens`
    half             half a surrogate in its text, then a call of the calculator, then an answer
    recorded=FILE    the reply of a cassette in agents/otel_cassettes
    thinking:REST    as REST, with `THOUGHTS` before its text and once more within it, and with details of usage

`NAME*2` does so for the first two requests and then answers. Any other name answers by quoting.

    python -m tests.doubles.provider --port 15020
"""

import argparse
import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from services.extractive import chat, responses, schemas
from services.extractive.answer import Reply, ToolCall, reply
from tests.real_data import real_data

CASSETTES = real_data("agents", "otel_cassettes")
TOKEN_SECONDS = 0.03
THOUGHTS = ("Let me ", "think ", "about 思考. ")
CACHED, REASONING = 3, 2
"""Tokens of each call that says details."""


@dataclass
class ProviderDouble:
    """One server. `requests` are the bodies that arrived, in order."""

    retry_after: str = "0"
    word_seconds: float = 0.0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    next: deque[str] = field(default_factory=deque)
    open: int = 0
    """Streams that are being sent."""
    _seen: Counter[str] = field(default_factory=Counter)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=32 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_put("/control", self._control)
        app.router.add_get("/control", self._report)
        return app

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """The address of the running server, without a path."""
        runner = web.AppRunner(self.app(), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def _behaviour(self, model: str) -> str:
        if self.next:
            return self.next.popleft()
        name, star, times = model.partition("*")
        self._seen[model] += 1
        return name if not star or self._seen[model] <= int(times) else "answer"

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "object": "list",
                "data": [{"id": "double", "object": "model", "created": 0, "owned_by": "tests"}],
            }
        )

    async def _embeddings(self, request: web.Request) -> web.Response:
        body, _ = await self._take(request)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.next.extend(body.get("next", ()))
        if body.get("release"):
            self.released.set()
        return web.json_response({"next": list(self.next)})

    async def _report(self, _: web.Request) -> web.Response:
        return web.json_response({"requests": len(self.requests), "open": self.open})

    async def _take(self, request: web.Request) -> tuple[dict[str, Any], str]:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return body, self._behaviour(body["model"])

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body, behaviour = await self._take(request)
        if (refusal := self._refusal(behaviour)) is not None:
            return refusal
        if behaviour.startswith("recorded="):
            return await self._replay(request, behaviour.removeprefix("recorded="))
        unreported = behaviour.startswith("unreported")
        asked = schemas.completion({**body, "stream_options": None} if unreported else body)
        thinks, behaviour = behaviour.startswith("thinking:"), behaviour.removeprefix("thinking:")
        answer = told(body) if behaviour == "told" else self._answer(asked, behaviour)
        if not asked.stream:
            whole = chat.whole(asked, answer)
            if behaviour in ("long", "spent"):
                whole["choices"][0]["finish_reason"] = "length"
            return web.json_response(whole)
        seconds = TOKEN_SECONDS if behaviour.startswith(("slow", "held")) else self.word_seconds
        events = chat.stream(asked, answer, seconds)
        if behaviour == "half":
            events = replaced(events, b"HALF", b"\\ud83d")
        if behaviour in ("long", "spent"):
            events = replaced(events, b'"finish_reason":"stop"', b'"finish_reason":"length"')
        return await self._stream(request, thinking(events) if thinks else events, behaviour)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body, behaviour = await self._take(request)
        if (refusal := self._refusal(behaviour)) is not None:
            return refusal
        asked = schemas.response_request(body)
        answer = self._answer(asked, behaviour)
        if not asked.stream:
            return web.json_response(responses.whole(asked, answer))
        return await self._stream(request, responses.stream(asked, answer, self.word_seconds), behaviour)

    def _answer(self, asked: schemas.Completion | schemas.ResponseRequest, behaviour: str) -> Reply:
        messages = schemas.messages_of(asked)
        name, _, detail = behaviour.partition("=")
        answered = messages[-1].role == "tool"
        if name in ("empty", "spent"):
            return Reply()
        if name in ("slow", "held", "unreported"):
            return Reply(" ".join(f"word{n}" for n in range(int(detail or 20))))
        if name == "malformed" and not answered:
            return Reply(calls=(ToolCall("call_bad", "calculator", '{"expression": "1 +'),))
        if name == "calls" and not answered:
            tools, _, arguments = detail.partition(":")
            given = arguments or json.dumps({"n": len(messages)})
            return Reply(
                calls=tuple(ToolCall(f"call_{n}", tool, given) for n, tool in enumerate(tools.split(","), 1))
            )
        if name == "half" and not answered:
            return Reply(
                "Half HALF of it.", calls=(ToolCall("call_half", "calculator", '{"expression": "1+1"}'),)
            )
        if name in ("calls", "malformed", "half"):
            return Reply(f"The tool said: {messages[-1].text}")
        return reply(messages, schemas.tools_of(asked))

    def _refusal(self, behaviour: str) -> web.Response | None:
        status, code, headers = {
            "rate-limited": (429, "rate_limit_exceeded", {"retry-after": self.retry_after}),
            "broken": (500, "server_error", {}),
            "unauthorized": (401, "invalid_api_key", {}),
            "too-long": (400, "context_length_exceeded", {}),
        }.get(behaviour, (0, "", {}))
        if not status:
            return None
        error = {
            "message": f"the double was told to: {behaviour}",
            "type": "error",
            "param": None,
            "code": code,
        }
        return web.json_response({"error": error}, status=status, headers=headers)

    async def _stream(
        self, request: web.Request, events: AsyncIterator[bytes], behaviour: str
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        self.open += 1
        try:
            # aiohttp tells that the caller has gone by the transport alone.
            while behaviour == "hang" and request.transport is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            sent = 0
            async for event in events:
                if behaviour in ("cut", "reported-cut", "clean-end", "bad-json") and sent == 3:
                    await self._break(request, answer, behaviour)
                    return answer
                await answer.write(event)
                sent += 1
                if sent == 10 and behaviour.startswith("held"):
                    await self.released.wait()
        finally:
            self.open -= 1
        return answer

    async def _break(self, request: web.Request, answer: web.StreamResponse, behaviour: str) -> None:
        if behaviour == "bad-json":
            await answer.write(b"data: {oops\n\n")
        if behaviour == "reported-cut":
            usage = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
            frame = {
                "id": "x",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "x",
                "choices": [],
                "usage": usage,
            }
            await answer.write(b"data: " + json.dumps(frame).encode() + b"\n\n")
        if behaviour in ("cut", "reported-cut"):
            await asyncio.sleep(0.02)  # what was written arrives before the reset
            if request.transport is not None:
                request.transport.abort()

    async def _replay(self, request: web.Request, name: str) -> web.StreamResponse:
        text, streamed = recorded(name)
        if not streamed:
            return web.Response(text=text, content_type="application/json")
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for event in text.split("\n\n"):
            if event.strip():
                await answer.write(event.strip().encode() + b"\n\n")
        return answer

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        """Anthropic's shape: the input is reported first, the output last."""
        body, behaviour = await self._take(request)
        if (refusal := self._refusal(behaviour)) is not None:
            return refusal
        thinks, behaviour = behaviour.startswith("thinking:"), behaviour.removeprefix("thinking:")
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        start = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
            "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 25, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 0, "output_tokens": 1},
        }  # fmt: skip

        async def send(kind: str, **fields: Any) -> None:
            await answer.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())

        await send("message_start", message=start)
        if thinks:
            thought = {"type": "thinking", "thinking": "", "signature": ""}
            await send("content_block_start", index=0, content_block=thought)
            for text in THOUGHTS:
                await send("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": text})
                await asyncio.sleep(TOKEN_SECONDS)
            await send("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "c2ln"})
            await send("content_block_stop", index=0)
        place = int(thinks)
        await send("content_block_start", index=place, content_block={"type": "text", "text": ""})
        for word in () if behaviour == "spent" else ("Hello", " from", " the", " double."):
            await send("content_block_delta", index=place, delta={"type": "text_delta", "text": word})
            if behaviour == "held" and word == " from":
                await self.released.wait()
            if behaviour in ("cut", "clean-end") and word == " from":
                await self._break(request, answer, behaviour)
                return answer
        await send("content_block_stop", index=place)
        await send(
            "message_delta",
            delta={
                "stop_reason": "max_tokens" if behaviour in ("long", "spent") else "end_turn",
                "stop_sequence": None,
            },
            usage={"output_tokens": 7},
        )
        await send("message_stop")
        return answer


def told(body: dict[str, Any]) -> Reply:
    """What reached the model, for a test that sees only the answer."""
    asked = schemas.completion(body)
    messages = [(one.role, one.text) for one in schemas.messages_of(asked)]
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    seen = {"messages": messages, "temperature": body.get("temperature"), "max_tokens": most}
    return Reply(json.dumps(seen))


async def replaced(events: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """The events with something else in them."""
    async for event in events:
        yield event.replace(old, new)


async def thinking(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Chunks of a chat with reasoning among them, and with details of usage."""
    position = 0
    async for event in events:
        if event == chat.DONE:
            yield event
            continue
        chunk = json.loads(event.removeprefix(b"data: "))
        if chunk.get("usage"):
            chunk["usage"]["prompt_tokens_details"] = {"cached_tokens": CACHED}
            chunk["usage"]["completion_tokens_details"] = {"reasoning_tokens": REASONING}
        said = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
        for thought in THOUGHTS if position == 1 or (position == 3 and said) else ():
            choice = {"index": 0, "delta": {"reasoning_content": thought}, "finish_reason": None}
            yield _data({**chunk, "choices": [choice], "usage": None})
            await asyncio.sleep(TOKEN_SECONDS)
        yield _data(chunk)
        position += 1


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def recorded(name: str) -> tuple[str, bool]:
    """Body of a recorded reply, and whether it is a stream."""
    if CASSETTES is None:
        raise FileNotFoundError("there are no cassettes here")
    cassette = yaml.safe_load((Path(CASSETTES) / f"{name}.yaml").read_text())
    response = cassette["interactions"][0]["response"]
    headers = {key.lower(): values for key, values in response["headers"].items()}
    return response["body"]["string"], "event-stream" in str(headers["content-type"])


async def _main(port: int) -> None:
    async with ProviderDouble().serve(port) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A provider of models that misbehaves on demand.")
    parser.add_argument("--port", type=int, default=15020)
    asyncio.run(_main(parser.parse_args().port))
