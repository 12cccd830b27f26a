"""A bare model: the request goes to its provider and the answer comes back as it comes.

Only the model's name is exchanged. A stream whose caller did not ask for usage is asked for it all the
same; the event that carries it is then left out, and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import httpx2
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.ids import new_id
from core.log import Logger
from core.tasks import cancel
from services.agents.metering import Tokens
from services.agents.openai.requests import includes_usage
from services.agents.openai.usage import guessed, reported
from services.agents.providers import Target
from services.common import openai_errors
from services.common.errors import Problem

_MAX_EVENT: Final = 1 << 20
"""Bytes that may be one event; more of it goes on unread."""
_PASSED: Final = frozenset(
    {"content-type", "retry-after", "openai-processing-ms", "openai-model", "openai-version"}
)
_LOG: Final = Logger("agents.openai.passthrough")


class Meter(Protocol):
    """Where what calls used is kept, before their answers end."""

    def note(self, call: str, tokens: Tokens) -> None:
        """Once a call. Raises: Problem 503 where it cannot be kept."""
        ...

    def nothing(self) -> None:
        """Instead of `note`: the provider refused."""
        ...

    async def sync(self) -> None:
        """Return when it survives a loss of power too. Raises: as `note`."""
        ...


class Call:
    """One call of a provider."""

    def __init__(self, http: httpx2.AsyncClient, target: Target, meter: Meter) -> None:
        self._http, self._target, self._kept = http, target, meter
        self.id = new_id("call")

    async def whole(self, path: str, body: dict[str, Any]) -> Response:
        """Raises: Problem 429, 502, 504."""
        request = self._request(path, body)
        try:
            answer = await self._http.send(request)
        except httpx2.HTTPError as error:
            raise self._away(error) from error
        except asyncio.CancelledError:
            self._kept.note(self.id, guessed(request.content, 0))
            raise
        self._check(answer)
        if answer.status_code == 200:
            self._kept.note(self.id, _usage_in(answer.content) or guessed(request.content, 0))
            await self._kept.sync()
        else:
            self._kept.nothing()
        return Response(answer.content, answer.status_code, headers=self._headers(answer))

    async def stream(self, path: str, body: dict[str, Any]) -> Response:
        """The answer's head has come. Raises: Problem 429, 502, 504."""
        wants_usage = includes_usage(body)
        if not wants_usage:
            options = body.get("stream_options")
            body = {
                **body,
                "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True},
            }
        request = self._request(path, body)
        try:
            answer = await self._http.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise self._away(error) from error
        except asyncio.CancelledError:
            self._kept.note(self.id, guessed(request.content, 0))
            raise
        if answer.status_code != 200:
            try:
                await answer.aread()
            except httpx2.HTTPError as error:
                raise self._away(error) from error
            finally:
                await answer.aclose()
            self._check(answer)
            self._kept.nothing()
            return Response(answer.content, answer.status_code, headers=self._headers(answer))
        reading = _Meter(request.content, hide=not wants_usage)
        return _Stream(answer, self._headers(answer), reading, self._ended, self._kept.sync)

    def _request(self, path: str, body: dict[str, Any]) -> httpx2.Request:
        provider = self._target.provider
        content = orjson.dumps({**body, "model": self._target.model})
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key := provider.api_key.reveal():
            headers["authorization"] = f"Bearer {key}"
        # Anthropic answers OpenAI's clients beside its own interface.
        base = f"{provider.base_url}/v1" if provider.kind == "anthropic" else provider.base_url
        return self._http.build_request("POST", f"{base}{path}", content=content, headers=headers)

    def _ended(self, meter: "_Meter") -> None:
        self._kept.note(self.id, meter.tokens or guessed(meter.request, meter.pieces))

    def _headers(self, answer: httpx2.Response) -> dict[str, str]:
        return {name: value for name, value in answer.headers.items() if name in _PASSED}

    def _check(self, answer: httpx2.Response) -> None:
        """What a provider says of us and not of the request is not the caller's fault. Raises: Problem."""
        status, name = answer.status_code, self._target.provider.name
        if status in {401, 403}:
            raise Problem(
                502,
                "provider_refused",
                "The provider refused",
                f"The provider {name} refused our key; renew it.",
            )
        if status == 429:
            raise Problem(
                429,
                "provider_limited",
                "The provider limits",
                f"The provider {name} takes no more requests now; try again later.",
                headers={"retry-after": answer.headers.get("retry-after", "1")},
            )
        if status >= 500 or status < 200 or 300 <= status < 400:
            raise Problem(
                502,
                "provider_failed",
                "The provider failed",
                f"The provider {name} answered {status}; try again.",
                headers={"retry-after": "1"},
            )

    def _away(self, error: httpx2.HTTPError) -> Problem:
        name = self._target.provider.name
        _LOG.warn("a provider did not answer", provider=name, error=type(error).__name__)
        if isinstance(error, httpx2.TimeoutException):
            return Problem(
                504, "provider_timeout", "The provider is silent", f"{name} did not answer in time."
            )
        return Problem(
            502, "provider_unreachable", "The provider is away", f"{name} cannot be reached; try again.",
            headers={"retry-after": "1"},
        )  # fmt: skip


class _Meter:
    """Reads along: counts pieces, finds the usage, leaves out its event where nobody asked for it."""

    def __init__(self, request: bytes, *, hide: bool) -> None:
        self.request = request
        self.tokens: Tokens | None = None
        self.pieces = 0
        self._hide = hide
        self._rest = b""

    def take(self, piece: bytes) -> bytes:
        """What goes on of it."""
        self._rest += piece
        *events, self._rest = self._rest.split(b"\n\n") if b"\r" not in self._rest else self._lines()
        kept = [event + b"\n\n" for event in events if not self._read(event)]
        if len(self._rest) > _MAX_EVENT:
            kept.append(self._rest)
            self._rest = b""
        return b"".join(kept) if self._hide else piece

    def end(self) -> bytes:
        """What is left at the end, an event without its end among it."""
        rest, self._rest = self._rest, b""
        return rest if self._hide else b""

    def _lines(self) -> list[bytes]:
        return self._rest.replace(b"\r\n", b"\n").split(b"\n\n")

    def _read(self, event: bytes) -> bool:
        """True where the event is only the usage that we asked for."""
        if not event.startswith(b"data:") or event.startswith(b"data: [DONE]"):
            return False
        if b'"usage"' not in event or b'"usage":null' in event:
            self.pieces += 1
            return False
        try:
            value = orjson.loads(event[5:])
        except ValueError:
            return False
        found = reported(value.get("usage")) if isinstance(value, dict) else None
        self.tokens = found or self.tokens
        return self._hide and found is not None and not value.get("choices")


class _Stream(Response):
    """Sends what comes when it comes. A caller that leaves ends the provider's work at once."""

    def __init__(
        self,
        answer: httpx2.Response,
        headers: dict[str, str],
        meter: _Meter,
        ended: Callable[[_Meter], None],
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._meter, self._ended, self._sync = answer, meter, ended, sync
        self._counted = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passing = asyncio.create_task(self._pass(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            await cancel(passing, leaving)
            await self._answer.aclose()
            self._count()

    def _count(self) -> None:
        """Raises: Problem 503."""
        if not self._counted:
            self._counted = True
            self._ended(self._meter)

    async def _pass(self, send: Send) -> None:
        try:
            async for piece in self._answer.aiter_raw():
                if data := self._meter.take(piece):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            data = self._meter.end()
        except httpx2.HTTPError as error:
            _LOG.warn("a provider broke off", error=type(error).__name__)
            broken = Problem(
                502, "provider_failed", "The provider broke off", "The stream broke off; try again."
            )
            data = b"data: %b\n\n" % openai_errors.body(broken)
        try:
            self._count()
            await self._sync()
        except Problem as problem:
            data = b"data: %b\n\n" % openai_errors.body(problem)
        await send({"type": "http.response.body", "body": data, "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _usage_in(content: bytes) -> Tokens | None:
    try:
        value = orjson.loads(content)
    except ValueError:
        return None
    return reported(value.get("usage")) if isinstance(value, dict) else None
