"""The agents service as the WebSocket gateway uses it: whose is this, send, cancel."""

import re
from collections import deque
from typing import Any, Final

import aiohttp
import msgspec
import orjson

from services.common.errors import Problem, not_found, unavailable
from services.common.principal import HEADER, Principal, sign, system
from services.ws.schemas import Owner

_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Agents:
    """Calls with a signed principal: the platform's own to look up owners, the client's to act.

    All of them are safe to repeat (a send names its message), so one that an instance breaks off when it
    dies or drains is given to the next.

    Args:
        url: address of the service; several, comma separated, are instances that are asked in turns.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, internal_key: bytes) -> None:
        self._http, self._urls, self._key = http, deque(url.split(",")), internal_key

    async def owner(self, kind: str, identity: str) -> Owner | None:
        """Whose run or conversation it is; None where there is none of this id. Raises: Problem 503."""
        status, body = await self._call("GET", f"/internal/{kind}s/{_checked(identity)}", system("ws"), None)
        if status == 404:
            return None
        if status != 200:
            raise unavailable("The agents service")
        return msgspec.json.decode(body, type=Owner)

    async def send(self, principal: Principal, conversation: str, content: dict[str, Any]) -> dict[str, Any]:
        """Answer of the POST, which comes after the commit. Raises: Problem."""
        path = f"/api/v1/conversations/{_checked(conversation)}/messages"
        return _document(await self._call("POST", path, principal, content))

    async def cancel(self, principal: Principal, run: str) -> dict[str, Any]:
        """Raises: Problem."""
        return _document(await self._call("POST", f"/api/v1/runs/{_checked(run)}/cancel", principal, {}))

    async def resolve(
        self, principal: Principal, run: str, call: str, content: dict[str, Any]
    ) -> dict[str, Any]:
        """Raises: Problem."""
        path = f"/api/v1/runs/{_checked(run)}/approvals/{_checked(call)}"
        return _document(await self._call("POST", path, principal, content))

    async def check(self) -> None:
        """Raises where the service does not answer."""
        async with self._http.get(f"{self._urls[0]}/healthz", timeout=_TIMEOUT) as answer:
            answer.raise_for_status()

    async def _call(
        self, method: str, path: str, principal: Principal, content: dict[str, Any] | None
    ) -> tuple[int, bytes]:
        headers = {HEADER: sign(principal, self._key)}
        self._urls.rotate(-1)
        # Once more than there are instances: a kept connection may break before a new one is refused.
        for _ in range(len(self._urls) + 1):
            try:
                async with self._http.request(
                    method, self._urls[0] + path, json=content, headers=headers, timeout=_TIMEOUT
                ) as answer:
                    return answer.status, await answer.read()
            except TimeoutError:
                break
            except (aiohttp.ClientError, OSError):
                self._urls.rotate(-1)
        raise unavailable("The agents service")


def _checked(identity: str) -> str:
    """An id that is safe in a path. Raises: Problem 404."""
    if not _ID.fullmatch(identity):
        raise not_found()
    return identity


def _document(answer: tuple[int, bytes]) -> dict[str, Any]:
    status, body = answer
    try:
        content = orjson.loads(body) if body else {}
    except ValueError:
        content = {}
    document: dict[str, Any] = content if isinstance(content, dict) else {}
    if status < 400:
        return document
    raise Problem(
        status, str(document.get("code", "refused")), str(document.get("title", "Refused")),
        str(document.get("detail", "")), errors=document.get("errors", ()),
    )  # fmt: skip
