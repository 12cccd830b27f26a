"""One client's connection: what it sent, what waits for it, how it ends."""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from picows import WSFrame, WSListener, WSMsgType, WSTransport

from services.common.principal import Principal
from services.ws import frames

if TYPE_CHECKING:
    from services.ws.gateway import Gateway
    from services.ws.subscription import Subscription

MAX_FRAME: Final = 65_536
HIGH_WATER: Final = 65_536
"""Bytes in the transport from which on frames wait with us."""
_CLOSE_SECONDS: Final = 3.0
_REQUESTS: Final = 32
"""Requests at work for one socket at a time."""
_RATE: Final = 30.0
_BURST: Final = 60.0
_PATIENCE: Final = 60
"""Frames above the rate that are answered with an error, before the socket is closed with 4029."""


class Socket(WSListener):
    """Told by picows of frames, by feeds of events."""

    def __init__(self, gateway: "Gateway", ticket: str, credential: str) -> None:
        self.gateway = gateway
        self.ticket, self.credential = ticket, credential
        self.principal: Principal | None = None
        self.session = ""
        self.until = float("inf")
        """Monotonic time at which what the client showed of itself ends."""
        self.subscriptions: dict[str, Subscription] = {}
        self.caller = ""
        self.early: list[bytes] = []
        """Texts that came before hello."""
        self.closed = False
        self.paused_at = 0.0
        self.heard_at = time.monotonic()
        self.asked_at = 0.0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.orders: deque[Any] = deque()
        """Requests with effects, which are done one after the other."""
        self._transport: Any = None
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._waiting_bytes = 0
        self._lost: dict[str, str] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._parts: list[bytes] = []
        self._tokens, self._counted_at, self._refused = _BURST, self.heard_at, 0

    @property
    def limits(self) -> dict[str, int]:
        """For the client, in hello."""
        return {"requests_per_second": int(_RATE), "burst": int(_BURST), "in_flight": _REQUESTS}

    # What picows calls.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport.underlying_transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self.gateway.connected(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        self.heard_at = time.monotonic()
        if kind == WSMsgType.CLOSE:
            self._answer_close(frame)
        elif self.closed or kind == WSMsgType.PONG:
            return
        elif frame.rsv1 or frame.rsv2 or frame.rsv3:
            self.close(frames.PROTOCOL, "reserved bits")
        elif kind == WSMsgType.BINARY:
            self.close(frames.UNSUPPORTED, "text frames only")
        else:
            self._take_part(kind, frame)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.closed = True
        self._writable.set()
        self._waiting.clear()
        self.gateway.disconnected(self)

    def pause_writing(self) -> None:
        self.paused_at = time.monotonic()
        self._writable.clear()

    def resume_writing(self) -> None:
        self.paused_at = 0.0
        self._writable.set()
        if self.closed:
            return
        if self._waiting:
            blob = b"".join([content for content, _ in self._waiting])
            self._waiting.clear()
            self._waiting_bytes = 0
            self._transport.write(blob)
        lost, self._lost = self._lost, {}
        for channel, reason in lost.items():
            self.push(frames.message("resync", ch=channel, reason=reason), keep=True)

    # What the rest of the gateway calls.

    def push(self, blob: bytes, *, keep: bool = False) -> None:
        """Write frames, or let them wait while the client is slow.

        Args:
            keep: True for answers: they are kept when events that wait are given up.
        """
        if self.closed:
            return
        if not self.paused_at:
            self._transport.write(blob)
            return
        self._waiting_bytes += len(blob)
        self._waiting.append((blob, keep))
        if self._waiting_bytes > self.gateway.queue_bytes:
            self._give_up_events()

    async def writable(self) -> None:
        """Wait until the client has taken what was written."""
        await self._writable.wait()

    def resync(self, channel: str, reason: str) -> None:
        """Tell the client that a subscription has ended before something would be missing in it."""
        if self.paused_at:
            self._lost[channel] = reason
        else:
            self.push(frames.message("resync", ch=channel, reason=reason), keep=True)

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and end the connection; at once where the client takes nothing any more."""
        if self.closed:
            return
        self.closed = True
        self.gateway.closing(self, code)
        self._transport.write(frames.close_frame(code, reason))
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def may_ask(self) -> bool:
        """Count a request; False (and an end, if it goes on) where there are too many."""
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._counted_at) * _RATE)
        self._counted_at = now
        if self._tokens >= 1 and len(self.tasks) + len(self.orders) < _REQUESTS:
            self._tokens -= 1
            self._refused = 0
            return True
        self._refused += 1
        if self._refused > _PATIENCE:
            self.close(frames.RATE, "too many requests")
        return False

    def _take_part(self, kind: WSMsgType, frame: WSFrame) -> None:
        if (kind == WSMsgType.CONTINUATION) != bool(self._parts):
            self.close(frames.PROTOCOL, "fragments out of order")
            return
        if sum(map(len, self._parts)) + frame.payload_size > MAX_FRAME:
            self.close(frames.TOO_BIG, f"at most {MAX_FRAME} bytes")
            return
        payload = frame.get_payload_as_bytes()
        if not frame.fin:
            self._parts.append(payload or b" ")
            return
        if self._parts:
            payload = b"".join([*self._parts, payload])
            self._parts.clear()
        self.gateway.received(self, payload)

    def _answer_close(self, frame: WSFrame) -> None:
        if not self.closed:
            self.closed = True
            code = int(frame.get_close_code().value) if frame.payload_size else 1005
            self.gateway.closing(self, 0)
            self._transport.write(frames.close_frame(code))
        self._transport.close()

    def _give_up_events(self) -> None:
        """The client has stopped taking: its events go, and it will be told which channels lost some."""
        for channel, subscription in list(self.subscriptions.items()):
            self._lost[channel] = "slow"
            subscription.stop("slow")
        self._waiting = deque((blob, keep) for blob, keep in self._waiting if keep)
        self._waiting_bytes = sum(len(blob) for blob, _ in self._waiting)
        self.gateway.metrics.given_up.inc()
