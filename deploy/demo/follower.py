"""A WebSocket client that loses its connection and still has every character of an answer."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from deploy.demo.run import DemoError

SUBPROTOCOL: Final = Subprotocol("agent.v1")
TERMINAL: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})
EVENTS_BETWEEN: Final = 3
"""Events of one connection until it is cut: an answer with a citation has at least ten, so both cuts come to pass."""
_PAUSE: Final = 0.2


class _RefusedError(Exception):
    """Not now: the answer says to try again."""


@dataclass(slots=True)
class Followed:
    """What the client has put together."""

    pieces: list[tuple[int, str, str]] = field(default_factory=list)
    """(seq, message, text) of each delta that still holds."""
    cuts: int = 0
    refusals: int = 0
    """Subscriptions that were refused for the moment (429, 503) and asked for again."""
    takeovers: int = 0
    last: tuple[int, int] | None = None
    """(epoch, seq) of the newest event."""
    missing: list[str] = field(default_factory=list)
    """Gaps, repetitions, and resumptions that the server refused."""
    completed: dict[str, Any] | None = None
    """Data of `message.completed`."""
    ended: str = ""
    """Type of the terminal event."""

    def text_of(self, message: str) -> str:
        return "".join(text for _, owner, text in self.pieces if owner == message)

    @property
    def text(self) -> str:
        """The answer as it was put together."""
        return self.text_of(self.completed["message"]) if self.completed else ""


async def follow(
    ticket: Callable[[], Awaitable[str]],
    ws_urls: Sequence[str],
    run: str,
    *,
    cuts: int = 0,
    hold: Callable[[], float] | None = None,
    patience: float = 120.0,
) -> Followed:
    """Follow the run to its end, cutting the connection on the way.

    Args:
        ticket: gets a fresh ticket.
        ws_urls: tried in turns, so each connection goes to another replica where there are several.
        cuts: so many times, each after a few events.
        hold: seconds that a connection is kept until it is cut, asked anew for each.

    Raises:
        DemoError: it did not end in time.
    """
    followed, why = Followed(), "no connection"
    try:
        async with asyncio.timeout(patience):
            for ws_url in itertools.cycle(ws_urls):
                address = f"{ws_url.replace('http', 'ws', 1)}/ws/v1?ticket={await ticket()}"
                try:
                    async with connect(address, subprotocols=[SUBPROTOCOL], max_size=2**20) as socket:
                        try:
                            async with asyncio.timeout(hold() if hold else None):
                                await _connection(socket, run, followed, cuts)
                        except TimeoutError:
                            followed.cuts += 1
                            socket.transport.abort()
                except (OSError, WebSocketException, _RefusedError) as error:
                    why = f"{type(error).__name__}: {error}"
                    await asyncio.sleep(_PAUSE)
                if followed.ended:
                    break
    except TimeoutError:
        raise DemoError(f"run {run} did not end in {patience:.0f} s over WebSocket ({why})") from None
    return followed


async def _connection(socket: ClientConnection, run: str, followed: Followed, cuts: int) -> None:
    channel = f"run:{run}"
    parameters: dict[str, Any] = {"ch": channel}
    if followed.last is not None:
        parameters["after"] = dict(zip(("epoch", "seq"), followed.last, strict=True))
    else:
        parameters["after"] = {"epoch": 0, "seq": 0}
    await socket.send(json.dumps({"t": "req", "id": 1, "method": "subscribe", "params": parameters}))
    received = 0
    async for message in socket:
        frame = json.loads(message)
        match frame["t"]:
            case "res":
                if not frame["ok"] and frame["error"].get("status") in {429, 503}:
                    followed.refusals += 1
                    raise _RefusedError(frame["error"])
                if not frame["ok"]:
                    raise DemoError(f"subscribing to {channel} was refused: {frame.get('error')}")
                if not frame["result"]["recovered"]:
                    followed.missing.append(f"not recovered after {followed.last}")
            case "resync":
                followed.missing.append(f"resync: {frame.get('reason')}")
                return
            case "event":
                _take(frame, followed)
                received += 1
                if followed.ended:
                    return
                if followed.cuts < cuts and received >= EVENTS_BETWEEN:
                    followed.cuts += 1
                    socket.transport.abort()
                    return


def _take(frame: dict[str, Any], followed: Followed) -> None:
    event, epoch, seq = frame["event"], frame["epoch"], frame["seq"]
    if seq != (followed.last[1] if followed.last else 0) + 1:
        followed.missing.append(f"{seq} after {followed.last}")
    followed.last = (epoch, seq)
    data = event["data"]
    match event["type"]:
        case "message.delta":
            here = len(followed.text_of(data["message"]))
            if data["offset"] != here:
                followed.missing.append(f"offset {data['offset']} at {here} characters")
            followed.pieces.append((seq, data["message"], data["text"]))
        case "run.takeover":
            # What the dead instance had said of an unfinished turn is said again.
            followed.takeovers += 1
            followed.pieces = [piece for piece in followed.pieces if piece[0] <= data["discard_after_seq"]]
        case "message.completed":
            followed.completed = data
        case kind if kind in TERMINAL:
            followed.ended = kind
