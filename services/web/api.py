"""The public API as the pages see it: through the gateway, with the person's own token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson

from services.common import browser_address

SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 3.0


class ApiError(Exception):
    """The API refused or is away.

    Args:
        status: of the answer; 503 where there was none.
        code: stable name of the problem.
        detail: what the API says to people.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code, self.detail = status, code, detail


class Api:
    """Calls the gateway.

    Args:
        base: public address of the API.
        key: signs the address of a browser for the gateway.
    """

    def __init__(self, base: str, http: aiohttp.ClientSession, key: bytes, browser: str = "") -> None:
        self._base, self._http, self._key, self._browser = base.rstrip("/"), http, key, browser

    def of(self, browser: str) -> "Api":
        """The same for a browser at this address: attempts are counted by it, not by ours."""
        return Api(self._base, self._http, self._key, browser)

    def _headers(self, token: str = "") -> dict[str, str]:
        found = {"authorization": f"Bearer {token}"} if token else {}
        if self._browser:
            found[browser_address.HEADER] = browser_address.sign(self._browser, self._key)
        return found

    async def call(
        self,
        method: str,
        path: str,
        token: str = "",
        body: object = None,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The answer's JSON, or its text where it is none; None where it is empty. Raises: ApiError."""
        sent = {**self._headers(token), **(headers or {})}
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            sent["content-type"] = "application/json"
        try:
            async with self._http.request(
                method,
                self._base + path,
                params=params,
                data=data,
                headers=sent,
                timeout=aiohttp.ClientTimeout(total=SECONDS, sock_connect=CONNECT_SECONDS),
            ) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    raise _refusal(answer.status, content)
                if answer.content_type == "text/csv":
                    return content.decode()
                return orjson.loads(content) if content else None
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
            raise ApiError(503, "unavailable", "") from None

    async def upload(self, url: str, content: AsyncIterator[bytes], size: int) -> None:
        """Send bytes to the address that the API gave for them. Raises: ApiError."""
        try:
            async with self._http.put(
                url if url.startswith("http") else self._base + url,
                data=content,
                headers={
                    **self._headers(),
                    "content-length": str(size),
                    "content-type": "application/octet-stream",
                },
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=60),
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise ApiError(503, "unavailable", "") from None

    @asynccontextmanager
    async def events(
        self, run_id: str, token: str, after: str
    ) -> AsyncIterator[tuple[int, aiohttp.StreamReader]]:
        """A run's events behind `after`: status and stream. Raises: ApiError."""
        headers = {**self._headers(token), "accept": "text/event-stream"}
        if after:
            headers["last-event-id"] = after
        try:
            async with self._http.get(
                f"{self._base}/api/v1/runs/{segment(run_id)}/events",
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=45),
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.read())
                yield answer.status, answer.content
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise ApiError(503, "unavailable", "") from None


def segment(text: str) -> str:
    """Text as one segment of a path, whatever is in it."""
    return quote(text, safe="")


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        problem = orjson.loads(content)
        return ApiError(status, str(problem.get("code", "")), str(problem.get("detail", "")))
    except (orjson.JSONDecodeError, AttributeError):
        return ApiError(status, "error", "")
