"""A channel that sockets of this process follow live: its frames are built once for all of them."""

from typing import TYPE_CHECKING

from core.contracts.agents import TERMINAL
from services.common.events import Entry
from services.ws import frames

if TYPE_CHECKING:
    from services.ws.gateway import Gateway
    from services.ws.subscription import Subscription


class Feed:
    """Listens to the memory of events; written out with the gateway's next tick."""

    def __init__(self, gateway: "Gateway", channel: str, key: str) -> None:
        self.channel, self.key = channel, key
        self.kind = channel.partition(":")[0]
        self.followers: set[Subscription] = set()
        self.users = 0
        """Subscriptions that have not ended, also those that have not caught up."""
        self._gateway = gateway
        self._prefix = frames.event_prefix(channel)
        self._pending: list[bytes] = []
        self._over = False

    def on_event(self, entry: Entry) -> None:
        """Called by the ring."""
        self._pending.append(self._frame(entry))
        self._over = self._over or (self.kind == "run" and entry.head.type in TERMINAL)
        self._gateway.mark(self)

    def on_lost(self, reason: str) -> None:
        """Called by the ring."""
        self.flush()
        for subscription in tuple(self.followers):
            subscription.lose(reason)

    def flush(self) -> None:
        """Write what has come to everybody who follows."""
        if not self._pending:
            return
        blob = b"".join(self._pending)
        self._gateway.metrics.frames.inc(len(self._pending) * len(self.followers))
        self._pending.clear()
        for subscription in tuple(self.followers):
            subscription.socket.push(blob)
        if self._over:
            for subscription in tuple(self.followers):
                subscription.stop()

    def _frame(self, entry: Entry) -> bytes:
        events = self._gateway.events
        if self.kind == "user":
            return frames.user_event_frame(self._prefix, events.epoch, str(events.vector), entry.raw)
        return frames.event_frame(self._prefix, *place(self.kind, events.epoch, entry), entry.raw)


def place(kind: str, topic_epoch: int, entry: Entry) -> tuple[int, int]:
    """`epoch` and `seq` of an event's frame: the run's own, or where it stands in the log, from 1 as well."""
    if kind == "run":
        return entry.head.epoch, entry.head.seq
    return topic_epoch, entry.offset + 1
