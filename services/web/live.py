"""A run's events, from the API to the browser, over gateways that come and go.

The browser's stream stays open while the one to the gateway breaks: it is opened again behind the last
event that went on, so the browser misses nothing and sees nothing twice. Only whole events go on.
"""

import asyncio
import re
import time
from typing import Final

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from core.contracts.agents import TERMINAL
from core.log import Logger
from core.tasks import cancel
from services.web.api import Api, ApiError

PATIENCE: Final = 60.0
"""Seconds without a working gateway until the browser is told to come back by itself."""
MAX_EVENT: Final = 4 << 20
_ID: Final = re.compile(rb"^id: ?(\d+)\r?$", re.MULTILINE)
_LAST: Final = frozenset(name.encode() for name in TERMINAL)
_LOG: Final = Logger("web.live")


class EventStream(Response):
    """The answer. Ends with the run's last event, or when the browser leaves.

    Args:
        token: access token, good for the start of the stream.
        after: number of the last event the browser has; '' for none.
    """

    media_type = "text/event-stream"

    def __init__(self, api: Api, token: str, run_id: str, after: str) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._api, self._token, self._run_id, self._after = api, token, run_id, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        work = asyncio.create_task(self._pass_on(send))
        gone = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await cancel(work, gone)

    async def _pass_on(self, send: Send) -> None:
        await _write(send, b"retry: 1000\n\n")
        heard, pause = time.monotonic(), 0.2
        while True:
            before = self._after
            try:
                if await self._follow(send):
                    return
            except ApiError as error:
                if error.status == 401:
                    # The browser comes back at once, and its next request can renew the token in its cookie.
                    return
                if error.status < 500 and error.status != 429:
                    await _write(send, _said("refused"))
                    return
                _LOG.debug("stream interrupted", run=self._run_id, status=error.status)
            if self._after != before:
                heard, pause = time.monotonic(), 0.2
            if time.monotonic() - heard > PATIENCE:
                return
            await _write(send, b": waiting\n\n")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _follow(self, send: Send) -> bool:
        """Pass events on until the stream ends; True where the run has ended."""
        async with self._api.events(self._run_id, self._token, self._after) as (status, stream):
            if status == 204:
                await _write(send, _said("ended"))
                return True
            waiting = b""
            async for piece in stream.iter_any():
                waiting += piece
                whole, end, waiting = waiting.rpartition(b"\n\n")
                if len(waiting) > MAX_EVENT:
                    return False
                if not end:
                    continue
                await _write(send, whole + end)
                if ids := _ID.findall(whole):
                    self._after = ids[-1].decode()
                if _is_last(whole):
                    return True
        return False


def _is_last(block: bytes) -> bool:
    return any(line[6:].strip() in _LAST for line in block.splitlines() if line.startswith(b"event:"))


def _said(what: str) -> bytes:
    """An event of our own, without a number."""
    return b"event: web\ndata: " + orjson.dumps({"what": what}) + b"\n\n"


async def _write(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def _left(receive: Receive) -> None:
    message: Message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
