"""A client of the WebSocket protocol: what it has seen of each channel, and requests with their answers."""

import asyncio
import contextlib
import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

Frame = dict[str, Any]


class Client:
    """One connection. Read with `ask` and `until`, both end with what they wait for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.hello: Frame = {}
        self._ids = itertools.count(1)

    async def receive(self) -> Frame:
        """The next frame. Raises: ConnectionError when the server has ended it."""
        async with asyncio.timeout(20):
            message = await self.socket.receive()
        if message.type != aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"{self.socket.close_code} {message.extra}")
        frame: Frame = message.json()
        self.frames.append(frame)
        if frame["t"] == "ping":
            await self.socket.send_json({"t": "pong"})
        return frame

    async def until(self, true: Callable[[Frame], bool]) -> Frame:
        while not true(frame := await self.receive()):
            pass
        return frame

    async def ask(self, method: str, **params: Any) -> Frame:
        """The `res` frame of a request."""
        number = next(self._ids)
        await self.socket.send_json({"t": "req", "id": number, "method": method, "params": params})
        return await self.until(lambda frame: frame["t"] == "res" and frame["id"] == number)

    async def subscribe(self, channel: str, after: Any = None) -> Frame:
        """The result. Raises: AssertionError with the error."""
        answer = await self.ask("subscribe", ch=channel, **({} if after is None else {"after": after}))
        assert answer["ok"], answer
        result: Frame = answer["result"]
        return result

    async def closed(self) -> tuple[int | None, str]:
        """Code and reason with which the server ends it; frames before that are read."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.receive()
        reason = ""
        return self.socket.close_code, reason

    def events(self, channel: str) -> list[Frame]:
        return [frame for frame in self.frames if frame["t"] == "event" and frame["ch"] == channel]


@asynccontextmanager
async def connect(
    http: aiohttp.ClientSession, address: str, *, ticket: str = "", token: str = "", **headers: str
) -> AsyncIterator[Client]:
    """A connection that has said hello."""
    sent = {**headers, **({"authorization": f"Bearer {token}"} if token else {})}
    url = address.replace("http", "ws", 1) + "/ws/v1" + (f"?ticket={ticket}" if ticket else "")
    async with http.ws_connect(
        url, headers=sent, protocols=("agent.v1",), autoping=True, max_msg_size=0
    ) as ws:
        client = Client(ws)
        client.hello = await client.until(lambda frame: frame["t"] == "hello")
        yield client


class Assembly:
    """The text of runs as a client puts it together over any number of connections."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = defaultdict(str)
        self.seqs: dict[str, list[int]] = defaultdict(list)
        self.place: dict[str, Any] | None = None
        self.digest = ""
        self.done = False

    def take(self, frame: Frame) -> None:
        event = frame["event"]
        run = event["subject"]
        self.place = {"epoch": frame["epoch"], "seq": frame["seq"]}
        self.seqs[run].append(event["seq"])
        if event["type"] == "message.delta":
            assert event["data"]["offset"] == len(self.texts[run])
            self.texts[run] += event["data"]["text"]
        elif event["type"] == "message.completed":
            self.digest = event["data"]["sha256"]
            assert hashlib.sha256(self.texts[run].encode()).hexdigest() == self.digest
        self.done = event["type"] == "run.completed"
