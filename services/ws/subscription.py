"""One client's way into a channel: first what it missed, then the feed that all share.

Until it has caught up a subscription listens for itself. It joins the feed in one step, in which the
feed writes out what its followers have not had yet: nothing is left out, nothing comes twice.
"""

from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from core.contracts.agents import TERMINAL
from core.eventlog.api import EventLogError
from services.common.events import Attached, Entry, Span, Vector
from services.common.events.positions import After
from services.ws import frames
from services.ws.feed import place

if TYPE_CHECKING:
    from services.ws.feed import Feed
    from services.ws.gateway import Gateway
    from services.ws.socket import Socket

_JOIN: Final = 65_536
"""Bytes of a replay that are written at once."""


class Subscription:
    """Made by the gateway; `start` gives the answer to the client's request."""

    def __init__(self, gateway: "Gateway", socket: "Socket", feed: "Feed") -> None:
        self.socket, self.feed = socket, feed
        self._gateway = gateway
        self._prefix = frames.event_prefix(feed.channel)
        self._own = False
        self._stopped = False
        self._replaying = True
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._lost = ""
        self._blob: list[bytes] = []
        self._blob_bytes = 0
        self._epoch, self._seq = 0, -1
        self._next: list[int] = []
        self._replayed = 0

    async def start(self, after: After | None, span: Span | None) -> dict[str, Any]:
        """Send what the client missed, then join the feed.

        Returns:
            `recovered`, `replayed` and where the client stands now; `reason` where it is not recovered.

        Raises:
            LogUnavailableError: nothing was sent, nothing is followed.
            ValueError: the position is not one of this channel.
        """
        events, feed = self._gateway.events, self.feed
        if isinstance(after, Vector):
            self._next = list(after.offsets)
        elif after is not None:
            self._seq = after[1]
        self._own = True
        try:
            plan = await events.attach(feed.key, self, after, span)
        except BaseException:
            self.stop()
            raise
        self._epoch = events.epoch
        reason = plan.reason
        if not plan.recovered:
            self._seq, self._next = -1, []
        else:
            reason = await self._replay(plan)
        self._replaying = False
        if reason:
            self._waiting.clear()
            self._seq, self._next = -1, []
        self.flush()
        return self._answer(reason)

    async def _replay(self, plan: Attached) -> str:
        """Why it could not be done to its end; empty where it could."""
        try:
            async with aclosing(self._gateway.events.history(plan)) as history:
                async for entry in history:
                    self._give(entry)
                    await self._pace()
                    if self._stopped:
                        return self._lost
        except EventLogError:
            return "log_unavailable"
        for entry in plan.ring:
            self._give(entry)
            await self._pace()
            if self._stopped:
                return self._lost
        plan.ring = []
        while self._waiting and not self._lost and not self._stopped:
            entry = self._waiting.popleft()
            self._waiting_bytes -= len(entry.raw)
            self._give(entry)
            await self._pace()
        self._write()
        return self._lost

    async def _pace(self) -> None:
        if self._blob_bytes >= _JOIN:
            self._write()
            await self.socket.writable()

    def on_event(self, entry: Entry) -> None:
        """Called by the ring while this subscription listens for itself."""
        if self._lost or self._stopped:
            return
        self._waiting.append(entry)
        self._waiting_bytes += len(entry.raw)
        if self._waiting_bytes > self._gateway.queue_bytes:
            self.on_lost("slow")
        elif not self._replaying:
            self._gateway.mark(self)

    def on_lost(self, reason: str) -> None:
        """Called by the ring while this subscription listens for itself."""
        self._lost = self._lost or reason
        self._waiting.clear()
        if not self._replaying:
            self._gateway.mark(self)

    def flush(self) -> None:
        """Write what came meanwhile, and join the feed as soon as this process knows what the client knows."""
        if self._stopped or not self._own:
            return
        while self._waiting and not self._lost:
            self._give(self._waiting.popleft())
        self._write()
        if self._lost:
            self.lose(self._lost)
        elif not self._is_ahead():
            self.feed.flush()
            self._gateway.join(self)
            self._leave_ring()

    def lose(self, reason: str) -> None:
        """End the subscription and tell the client."""
        if not self._stopped:
            self.stop()
            self.socket.resync(self.feed.channel, reason)

    def stop(self, reason: str = "") -> None:
        """End the subscription without a word; the answer of one that still starts tells the reason."""
        if self._stopped:
            return
        self._stopped, self._lost = True, self._lost or reason
        self._waiting.clear()
        self._leave_ring()
        self._gateway.left(self)

    def _leave_ring(self) -> None:
        if self._own:
            self._own = False
            self._gateway.events.detach(self.feed.key, self)

    def _is_ahead(self) -> bool:
        """Whether the client has seen events (of another process) that have not come here yet."""
        events, kind = self._gateway.events, self.feed.kind
        if kind == "run" and self._seq > 0:
            state = events.ring.run(self.feed.key.partition(":")[2])
            return state is None or state.seq < self._seq
        if kind == "conversation" and self._seq >= 0:
            return self._seq >= events.next_offset(self.feed.key.partition(":")[2])
        return any(offset > events.ring.positions[partition] for partition, offset in enumerate(self._next))

    def _give(self, entry: Entry) -> None:
        if self._stopped or self._lost or not self._is_new(entry):
            return
        if self.feed.kind == "user":
            cursor = str(
                Vector(self._epoch, tuple(self._next)) if self._next else self._gateway.events.vector
            )
            frame = frames.user_event_frame(self._prefix, self._epoch, cursor, entry.raw)
        else:
            frame = frames.event_frame(self._prefix, *place(self.feed.kind, self._epoch, entry), entry.raw)
        self._blob.append(frame)
        self._blob_bytes += len(frame)
        self._replayed += self._replaying
        if self.feed.kind == "run" and entry.head.type in TERMINAL:
            self._write()
            self.stop()

    def _is_new(self, entry: Entry) -> bool:
        if self.feed.kind == "user":
            if not self._next:
                return True
            if entry.offset < self._next[entry.partition]:
                return False
            self._next[entry.partition] = entry.offset + 1
            return True
        at = entry.head.seq if self.feed.kind == "run" else entry.offset
        if at <= self._seq:
            return False
        if self.feed.kind == "run" and self._seq >= 0 and at != self._seq + 1:
            self._lost = "gap"
            return False
        self._seq = at
        return True

    def _write(self) -> None:
        if self._blob:
            self._gateway.metrics.frames.inc(len(self._blob))
            self.socket.push(b"".join(self._blob))
            self._blob.clear()
            self._blob_bytes = 0

    def _answer(self, reason: str) -> dict[str, Any]:
        events, identity = self._gateway.events, self.feed.key.partition(":")[2]
        answer: dict[str, Any] = {"recovered": not reason, "replayed": self._replayed}
        if reason:
            answer["reason"] = reason
        if self.feed.kind == "run":
            state = events.ring.run(identity)
            epoch, seq = (state.epoch, state.seq) if state is not None else (0, 0)
            answer |= {"epoch": epoch, "last_seq": max(seq, self._seq, 0)}
        elif self.feed.kind == "conversation":
            answer |= {"epoch": self._epoch, "last_seq": max(events.next_offset(identity), self._seq + 1)}
        else:
            known = events.vector.offsets
            offsets = tuple(map(max, known, self._next)) if self._next else known
            answer |= {"epoch": self._epoch, "cursor": str(Vector(self._epoch, offsets))}
        return answer
