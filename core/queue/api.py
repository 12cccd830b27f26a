"""The seam of the work queue: what RabbitMQ and our PostgreSQL tables both keep.

Exchanges route messages to queues; a queue gives each message to one consumer, which acknowledges
it. A message is delivered at least once: again where its consumer died, was cut off or gave it back.
Retry ladder, dead letters and outbox are written once, above this seam, in `core.messaging`.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, Protocol

import msgspec

Kind = Literal["topic", "direct", "fanout"]
Headers = tuple[tuple[str, bytes], ...]

PATIENCE: Final = 10.0
"""Seconds that a call waits for a server that is away, where nothing else is said."""
BROWSE_BYTES: Final = 64 << 20
"""Bytes of bodies that looking at a queue takes into memory."""
DEFAULT_EXCHANGE: Final = ""
"""Routes to the one queue that the routing key names."""
BY_ROUTING_KEY: Final = "*"
"""`Queue.dead_letter`: to the queue that the message's routing key names."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    routing_key: str
    """`*` stands for one word and `#` for any number, on a topic exchange."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and what it is bound to."""

    name: str
    bindings: tuple[Binding, ...] = ()
    ttl: timedelta | None = None
    """How long a message may wait here."""
    dead_letter: str | None = None
    """Queue that gets a message whose time is over; `BY_ROUTING_KEY`, or None: it is dropped."""
    single_active: bool = False
    """True where one consumer at a time gets messages, so that their order is kept."""


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """A message to publish."""

    exchange: str
    routing_key: str
    id: str
    """Tells a message that comes twice; at most 255 bytes."""
    body: bytes
    headers: Headers = ()


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message as it stands in a queue, held by one consumer until it is acknowledged."""

    tag: int
    """Names this delivery to the consumer that got it."""
    id: str
    routing_key: str
    body: bytes
    headers: Headers
    deliveries: int
    """How many times this queue has given it out, this time included."""


class QueueError(Exception):
    """Base of what the queue refuses; the message says what, which and what to do."""


class UnknownQueueError(QueueError):
    """The queue does not exist. Queues are made from `core.topology`, never by who uses them."""

    def __init__(self, name: str) -> None:
        super().__init__(f"queue {name!r} does not exist; list it in core/topology.py and provision")
        self.name = name


class QueueChangedError(QueueError):
    """A queue or exchange exists with other properties, which cannot be changed in place."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(
            f"{name!r} exists with other properties than core/topology.py says; "
            f"empty it and delete it, then provision{': ' + detail if detail else ''}"
        )


class UnroutableError(QueueError):
    """No queue takes some of the messages; the others were published."""

    def __init__(self, messages: Sequence[NewMessage]) -> None:
        first = messages[0]
        super().__init__(
            f"{len(messages)} messages find no queue, first {first.id!r} to exchange {first.exchange!r} "
            f"with routing key {first.routing_key!r}; bind a queue in core/topology.py and provision"
        )
        self.messages = tuple(messages)


class QueueUnavailableError(QueueError):
    """The queue could not be reached in time. What was being published may have arrived or not."""


class Consumer(Protocol):
    """Takes messages of one queue, at most `prefetch` of them unacknowledged.

    While the queue is away `get` waits, and the consumer comes back by itself.
    """

    async def get(self) -> Delivery:
        """The next message, waiting for one. Raises: UnknownQueueError."""
        ...

    async def ack(self, delivery: Delivery) -> bool:
        """It is done and leaves the queue. False where it was no longer held: it comes again."""
        ...

    async def nack(self, delivery: Delivery) -> None:
        """Give it back, for whoever comes next."""
        ...

    @property
    def consuming(self) -> bool:
        """True while the queue would give us what comes."""
        ...


class WorkQueue(Protocol):
    """The queue itself. `async with` starts and closes it."""

    async def __aenter__(self) -> "WorkQueue": ...
    async def __aexit__(self, *exc: object) -> None: ...

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Create what is missing. Never deletes. Raises: QueueChangedError, QueueUnavailableError."""
        ...

    async def delete(self, queue: str) -> None:
        """Delete a queue with its messages; nothing happens where it is not there."""
        ...

    async def publish(self, messages: Sequence[NewMessage]) -> None:
        """Publish in the order given; returns once the queue has taken them all durably.

        Raises: UnroutableError (the others were taken), QueueUnavailableError.
        """
        ...

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Consumer]:
        """A consumer of a queue. What it holds at the end goes back."""
        ...

    def subscribe(self, binding: Binding, *, prefetch: int) -> AbstractAsyncContextManager[Consumer]:
        """A consumer of a queue of its own: each subscriber gets each message from now on.

        The queue goes with the subscriber, and what came while it was cut off may be missing.
        """
        ...

    def browse(
        self, queue: str, limit: int, max_bytes: int = BROWSE_BYTES
    ) -> AbstractAsyncContextManager[tuple[Consumer, Sequence[Delivery]]]:
        """Hold up to `limit` messages that are ready now; what is not acknowledged goes back.

        Stops early once their bodies have come to `max_bytes`: they are all in memory.

        Raises: UnknownQueueError, QueueUnavailableError.
        """
        ...

    async def depths(self, queues: Collection[str]) -> dict[str, "Depth"]:
        """What waits in these queues; those that do not exist are absent."""
        ...


@dataclass(frozen=True, slots=True)
class Depth:
    ready: int
    """Messages that wait for a consumer."""
    oldest_seconds: float | None
    """How long the oldest of them has waited; None where the server does not say."""


async def deliveries(consumer: Consumer) -> AsyncIterator[Delivery]:
    """Every message that comes, until the caller stops."""
    while True:
        yield await consumer.get()
