"""All sockets of this process: who they are, what they follow, when they are written to and when they end."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import orjson
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from prometheus_client import Counter, Gauge

from core.log import Logger
from services.common.events import AgentEvents
from services.common.revocations import Revoked
from services.ws import frames
from services.ws.feed import Feed
from services.ws.handlers import Handlers
from services.ws.sessions import Session, SessionError, Sessions
from services.ws.socket import MAX_FRAME, Socket
from services.ws.subscription import Subscription
from services.ws.upgrade import Origins, Refused, examine

TICK: Final = 0.015
"""Seconds that events wait for others to be written with them."""
DRAIN_SECONDS: Final = 2.0
RECONNECT_MS: Final = 5_000
_SWEEP: Final = 0.5
_UNKNOWN_SOCKETS: Final = 2_000
"""Connections at a time that have not shown yet who they are."""
SOCKETS_EACH: Final = 200
"""Of one caller at a time."""

_log = Logger("ws")


class Marked(Protocol):
    """What has something to write with the next tick."""

    def flush(self) -> None: ...


class Metrics:
    """What `/metrics` tells of the sockets."""

    sockets = Gauge("ws_sockets", "Connections that are open")
    subscriptions = Gauge("ws_subscriptions", "Channels that sockets follow")
    frames = Counter("ws_event_frames_total", "Event frames written to sockets")
    closes = Counter("ws_closes_total", "Closes by this side, by code", ["code"])
    resumes = Counter("ws_resumes_total", "Subscriptions that named a position", ["recovered"])
    given_up = Counter("ws_slow_total", "Clients whose waiting events were given up")


class Gateway:
    """The data plane. `start` and `drain` belong to the application's lifespan."""

    max_read = 4 * MAX_FRAME
    """A frame above it is refused by picows itself (1009); above `MAX_FRAME` by us (4013)."""

    def __init__(
        self,
        events: AgentEvents,
        sessions: Sessions,
        handlers: Handlers,
        origins: Origins,
        *,
        queue_bytes: int,
        heartbeat: float,
        slow_seconds: float,
    ) -> None:
        self.events, self.queue_bytes = events, queue_bytes
        self.metrics = Metrics()
        self._sessions, self._handlers, self._origins = sessions, handlers, origins
        self._heartbeat, self._slow_seconds = heartbeat, slow_seconds
        self._sockets: set[Socket] = set()
        self._unknown = 0
        self._callers: dict[str, int] = {}
        self._feeds: dict[str, Feed] = {}
        self._dirty: OrderedDict[Marked, None] = OrderedDict()
        self._ticking = False
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- connections ----------------------------------------------------------------------------------

    def accept(self, request: WSUpgradeRequest) -> Socket | WSUpgradeResponseWithListener:
        """picows asks who answers an upgrade: a socket, or a refusal."""
        refused = Refused(503, b"draining\n") if self._draining else None
        if refused is None and self._unknown >= _UNKNOWN_SOCKETS:
            refused = Refused(503, b"too many connections are being opened\n")
        wish = refused or examine(request, self._origins)
        if isinstance(wish, Refused):
            response = WSUpgradeResponse.create_error_response(wish.status, wish.body)
            return WSUpgradeResponseWithListener(response, None)
        socket = Socket(self, wish.ticket, wish.credential)
        headers = {"sec-websocket-protocol": frames.SUBPROTOCOL} if wish.subprotocol else {}
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers), socket)

    def connected(self, socket: Socket) -> None:
        self._sockets.add(socket)
        self.metrics.sockets.inc()
        self._unknown += 1
        self.spawn(socket, self._welcome(socket))

    async def _welcome(self, socket: Socket) -> None:
        try:
            session = await self._sessions.begin(socket.ticket, socket.credential)
        except SessionError as error:
            socket.close(error.code, error.reason)
            return
        finally:
            self._unknown -= 1
            socket.ticket = ""
        if socket.closed:
            return
        caller = f"{session.principal.tenant_id}/{session.principal.subject}"
        if self._callers.get(caller, 0) >= SOCKETS_EACH:
            socket.close(frames.RATE, f"at most {SOCKETS_EACH} connections of one caller")
            return
        self._callers[caller] = self._callers.get(caller, 0) + 1
        socket.caller = caller
        self._adopt(socket, session)
        socket.session = secrets.token_hex(8)
        socket.push(
            frames.message(
                "hello", session=socket.session, heartbeat_ms=int(self._heartbeat * 1000), max_frame=MAX_FRAME,
                expires_in_ms=self._left(socket), limits=socket.limits,
            ),
            keep=True,
        )  # fmt: skip
        for payload in socket.early:
            self._handlers.take(self, socket, payload)
        socket.early.clear()

    def _adopt(self, socket: Socket, session: Session) -> None:
        socket.principal, socket.until = session.principal, session.until
        socket.credential = session.credential

    def renew(self, socket: Socket, session: Session) -> int:
        """Go on with what the client has shown anew; returns the milliseconds it is good for.

        Raises:
            SessionError: it is somebody else's.
        """
        known = socket.principal
        if known is None or (known.tenant_id, known.subject) != (
            session.principal.tenant_id,
            session.principal.subject,
        ):
            raise SessionError(frames.AUTH, "that is of another caller")
        self._adopt(socket, session)
        return self._left(socket)

    def _left(self, socket: Socket) -> int:
        return int(max(socket.until - time.monotonic(), 0) * 1000)

    def disconnected(self, socket: Socket) -> None:
        if socket not in self._sockets:
            return
        self._sockets.discard(socket)
        self.metrics.sockets.dec()
        for subscription in list(socket.subscriptions.values()):
            subscription.stop()
        for task in socket.tasks:
            task.cancel()
        if socket.caller:
            self._callers[socket.caller] -= 1
            if not self._callers[socket.caller]:
                del self._callers[socket.caller]

    def closing(self, socket: Socket, code: int) -> None:
        """Nothing more is written to this socket."""
        if code:
            self.metrics.closes.labels(str(code)).inc()
        for subscription in list(socket.subscriptions.values()):
            subscription.stop()

    def received(self, socket: Socket, payload: bytes) -> None:
        if socket.principal is not None:
            self._handlers.take(self, socket, payload)
        elif len(socket.early) < 8:
            socket.early.append(payload)
        else:
            socket.close(frames.RATE, "wait for hello")

    def spawn(self, socket: Socket, work: Coroutine[Any, Any, None]) -> None:
        """Do something for a socket, as long as it is there."""
        task = asyncio.create_task(work)
        socket.tasks.add(task)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(socket, done))

    def _done(self, socket: Socket, task: asyncio.Task[Any]) -> None:
        socket.tasks.discard(task)
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("work for a socket failed", exc=error)
            socket.close(1011, "internal error")

    # --- channels -------------------------------------------------------------------------------------

    def subscription(self, socket: Socket, channel: str, key: str) -> Subscription:
        """A new way into a channel; one that the socket had before ends."""
        if (old := socket.subscriptions.get(channel)) is not None:
            old.stop()
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self, channel, key)
        feed.users += 1
        self.metrics.subscriptions.inc()
        made = socket.subscriptions[channel] = Subscription(self, socket, feed)
        return made

    def join(self, subscription: Subscription) -> None:
        """Write a channel's events to one more socket from now on."""
        feed = subscription.feed
        if not feed.followers:
            self.events.ring.attach(feed.key, feed)
        feed.followers.add(subscription)

    def left(self, subscription: Subscription) -> None:
        feed, socket = subscription.feed, subscription.socket
        self.metrics.subscriptions.dec()
        feed.followers.discard(subscription)
        if not feed.followers:
            self.events.ring.detach(feed.key, feed)
        feed.users -= 1
        if not feed.users:
            self._feeds.pop(feed.key, None)
        if socket.subscriptions.get(feed.channel) is subscription:
            del socket.subscriptions[feed.channel]

    def mark(self, what: Marked) -> None:
        """Write it with the next tick."""
        self._dirty[what] = None
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        dirty, self._dirty = self._dirty, OrderedDict()
        for one in dirty:
            try:
                one.flush()
            except Exception as error:
                # One channel's fault must not stop the others.
                _log.error("a channel could not be written", exc=error)

    # --- time, revocation, end ------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Ask the silent, end the dead, the slow and the expired; until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            for index, socket in enumerate(tuple(self._sockets)):
                if not socket.closed:
                    self._look_at(socket, now)
                if index % 200 == 199:
                    await asyncio.sleep(0)

    def _look_at(self, socket: Socket, now: float) -> None:
        silent = now - socket.heard_at
        if socket.paused_at and now - socket.paused_at > self._slow_seconds:
            socket.close(frames.SLOW, "too slow")
        elif silent > 2.5 * self._heartbeat:
            socket.close(frames.SLOW, "no sign of life")
        elif socket.principal is None:
            return
        elif now > socket.until:
            self._expired(socket)
        elif silent > self._heartbeat and now - socket.asked_at > self._heartbeat:
            socket.asked_at = now
            socket.push(frames.PING)

    def _expired(self, socket: Socket) -> None:
        """A credential that is still good gives another while; a ticket was for one."""
        if not socket.credential:
            socket.close(frames.AUTH, "expired: connect with a new ticket")
            return
        socket.until = time.monotonic() + 30
        self.spawn(socket, self._recheck(socket))

    async def _recheck(self, socket: Socket) -> None:
        try:
            self.renew(socket, await self._sessions.begin("", socket.credential))
        except SessionError as error:
            if error.code != 1013:
                socket.close(error.code, error.reason)

    def revoked(self, event: Revoked) -> None:
        """Look again at everybody whom a notice concerns; all of them where notices may have been missed."""
        self._sessions.revoked(event)
        self._handlers.forget()
        for socket in tuple(self._sockets):
            if socket.principal is None or socket.closed or not concerns(event, socket):
                continue
            if socket.credential:
                self.spawn(socket, self._recheck(socket))
            elif event.type == "gap":
                # Redis was away: nobody knows. The client shows itself anew within a minute.
                left = 30 + secrets.randbelow(30)
                if socket.until > time.monotonic() + left:
                    socket.until = time.monotonic() + left
                    socket.push(frames.message("reauth", within_ms=left * 1000), keep=True)
            else:
                socket.close(frames.AUTH, "revoked: connect with a new ticket")

    async def drain(self) -> None:
        """Send everybody away, spread over some time, each with its own hint when to come back."""
        self._draining = True
        sockets = [socket for socket in self._sockets if not socket.closed]
        _log.info("draining sockets", sockets=len(sockets))
        for index, socket in enumerate(sockets):
            hint = orjson.dumps({"reconnect_ms": 100 + secrets.randbelow(RECONNECT_MS)}).decode()
            socket.close(frames.RESTART, hint)
            if index % 50 == 49:
                await asyncio.sleep(DRAIN_SECONDS * 50 / len(sockets))
        deadline = time.monotonic() + 3.0
        while self._sockets and time.monotonic() < deadline:  # noqa: ASYNC110 - each leaves by itself
            await asyncio.sleep(0.02)
        for socket in tuple(self._sockets):
            socket.abort()
        for task in tuple(self._tasks):
            task.cancel()


def concerns(event: Revoked, socket: Socket) -> bool:
    principal = socket.principal
    return principal is not None and (
        (not event.key_id or event.key_id == principal.key_id)
        and (not event.subject or event.subject == principal.subject)
        and (not event.tenant_id or event.tenant_id == principal.tenant_id)
    )
