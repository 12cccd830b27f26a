"""The work queue on PostgreSQL tables (schema `queue`, role hr_system).

Taking a message leases it (`for update skip locked`, then `visible_at` moves into the future); the
consumer renews its leases while it lives, so a message of one that died is ready again when its
lease ends. Routing, leases and expiry are functions in 71_queue.sql: one round trip each.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import asyncpg

from core.eventlog import headers
from core.eventlog.postgres_connections import Connection, Connections
from core.queue.api import (
    BROWSE_BYTES,
    PATIENCE,
    Binding,
    Delivery,
    Depth,
    Exchange,
    NewMessage,
    Queue,
    QueueChangedError,
    QueueUnavailableError,
    UnknownQueueError,
    UnroutableError,
)
from core.settings import DatabaseSettings
from core.tasks import cancel

LEASE_SECONDS: Final = 30.0
_BROWSE_STEP: Final = 16
"""Messages that browsing takes at once: a body has up to a megabyte."""
_IDLE_SECONDS: Final = 1.0
"""An idle consumer looks this often without being woken, should a notice be lost."""

_PUBLISH = "select queue.publish($1, $2, $3, $4, $5)"
_NEXT = """
    select extract(epoch from least((select min(expires_at) from message),
                                    (select min(visible_at) from message where queue = $1)) - clock_timestamp())
"""
_GIVE_BACK = """
    with back as (
        update message set visible_at = clock_timestamp(), lease = null where id = $1 and lease = $2 returning queue
    )
    select count(pg_notify('queue', queue)) from back
"""
_LEAVE = """
    with back as (
        update message set visible_at = clock_timestamp(), lease = null where queue = $1 and lease = $2 returning 1
    ), left_ as (
        update queue set holder = null, holder_until = null where name = $1 and holder = $2 returning 1
    )
    select pg_notify('queue', $1) where exists (select from back) or exists (select from left_)
"""


class PostgresQueue:
    """Args:
    settings: the database.
    patience: seconds that a call waits for a server that is away.
    lease_seconds: a message of a consumer that died is ready again after these.
    """

    def __init__(
        self, settings: DatabaseSettings, *, patience: float = PATIENCE, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.connections = Connections(settings, patience, schema="queue", unavailable=QueueUnavailableError)
        self.lease_seconds = lease_seconds

    async def __aenter__(self) -> Self:
        await self.connections.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.connections.close()

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        async def work(connection: Connection) -> None:
            async with connection.transaction():
                for exchange in exchanges:
                    await _declare_exchange(connection, exchange)
                for queue in queues:
                    await _declare_queue(connection, queue)

        await self.connections.call(work)

    async def delete(self, queue: str) -> None:
        await self.connections.execute("delete from queue where name = $1", queue)

    async def publish(self, messages: Sequence[NewMessage]) -> None:
        # Repeated where the answer was lost: a message twice rather than never.
        await self.connections.call(lambda connection: self.publish_in(connection, messages))

    async def publish_in(self, connection: Connection, messages: Sequence[NewMessage]) -> None:
        """As `publish`, but visible when the caller's transaction commits. Raises: UnroutableError."""
        if not messages:
            return
        unroutable = await connection.fetchval(
            _PUBLISH,
            [message.exchange for message in messages],
            [message.routing_key for message in messages],
            [message.id for message in messages],
            [message.body for message in messages],
            [headers.encode(message.headers) for message in messages],
        )
        if unroutable:
            raise UnroutableError([messages[position - 1] for position in unroutable])

    @asynccontextmanager
    async def consume(self, queue: str, *, prefetch: int) -> AsyncIterator["PostgresConsumer"]:
        consumer = PostgresConsumer(self, queue, prefetch)
        async with consumer.beating():
            yield consumer

    @asynccontextmanager
    async def subscribe(self, binding: Binding, *, prefetch: int) -> AsyncIterator["PostgresConsumer"]:
        consumer = PostgresConsumer(self, f"exclusive.{uuid.uuid4()}", prefetch, binding)
        try:
            async with consumer.beating():
                yield consumer
        finally:
            with contextlib.suppress(QueueUnavailableError):
                await self.delete(consumer.queue)

    @asynccontextmanager
    async def browse(
        self, queue: str, limit: int, max_bytes: int = BROWSE_BYTES
    ) -> AsyncIterator[tuple["PostgresConsumer", Sequence[Delivery]]]:
        consumer = PostgresConsumer(self, queue, limit)
        async with consumer.beating():
            held: list[Delivery] = []
            size = 0
            while len(held) < limit and size < max_bytes:
                if not (more := await consumer.take(min(_BROWSE_STEP, limit - len(held)))):
                    break
                held += more
                size += sum(len(delivery.body) for delivery in more)
            yield consumer, held

    async def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        rows = await self.connections.fetch(
            """
            select q.name, count(m.id), extract(epoch from clock_timestamp() - min(m.queued_at))
            from queue q left join message m on m.queue = q.name and m.visible_at <= clock_timestamp()
            where q.name = any($1) group by q.name
            """,
            list(queues),
        )
        return {row[0]: Depth(row[1], max(0.0, float(row[2] or 0))) for row in rows}


class PostgresConsumer:
    """One consumer; see `core.queue.api.Consumer`."""

    def __init__(self, owner: PostgresQueue, queue: str, prefetch: int, own: Binding | None = None) -> None:
        self._owner, self.queue, self._prefetch, self._own = owner, queue, prefetch, own
        self._id = uuid.uuid4()
        self._held: set[int] = set()
        self._waiting: list[Delivery] = []
        self._wake = asyncio.Event()
        self._last = float("-inf")

    @property
    def consuming(self) -> bool:
        return asyncio.get_running_loop().time() - self._last < self._owner.lease_seconds

    async def get(self) -> Delivery:
        while not self._waiting:
            self._wake.clear()
            room = self._prefetch - len(self._held)
            if room > 0:
                try:
                    self._waiting = (await self.take(room))[::-1]
                except QueueUnavailableError:
                    continue
                if self._waiting:
                    break
            await self._idle(may_take=room > 0)
        return self._waiting.pop()

    async def take(self, limit: int | None = None) -> list[Delivery]:
        """What is ready now. Raises: UnknownQueueError, QueueUnavailableError."""
        rows = await self._owner.connections.fetch(
            "select * from take($1, $2, $3, $4)",
            self.queue, self._id, limit or self._prefetch, self._owner.lease_seconds,
        )  # fmt: skip
        if not rows and not await self._exists():
            raise UnknownQueueError(self.queue)
        self._last = asyncio.get_running_loop().time()
        taken = [
            Delivery(
                row["id"], row["message_id"], row["routing_key"], row["body"], headers.decode(row["headers"]),
                row["deliveries"],
            )
            for row in rows
        ]  # fmt: skip
        self._held.update(delivery.tag for delivery in taken)
        return taken

    async def ack(self, delivery: Delivery) -> bool:
        gone = await self._owner.connections.fetch(
            "delete from message where id = $1 and lease = $2 and deliveries = $3 returning id",
            delivery.tag, self._id, delivery.deliveries,
        )  # fmt: skip
        self._let_go(delivery)
        return bool(gone)

    async def nack(self, delivery: Delivery) -> None:
        await self._owner.connections.fetch(_GIVE_BACK, delivery.tag, self._id)
        self._let_go(delivery)

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Inside, leases are renewed and notices wake `get`; at the end what is held goes back."""
        await self._make_own()
        self._owner.connections.subscribe(self._notice)
        beating = asyncio.create_task(self._beat(), name=f"queue-{self.queue}-beat")
        try:
            yield
        finally:
            await cancel(beating)
            self._owner.connections.unsubscribe(self._notice)
            with contextlib.suppress(QueueUnavailableError):
                await self._owner.connections.fetch(_LEAVE, self.queue, self._id)

    async def _exists(self) -> bool:
        return bool(
            await self._owner.connections.fetchval("select true from queue where name = $1", self.queue)
        )

    async def _idle(self, *, may_take: bool) -> None:
        pause: float | None = None
        if may_take:
            with contextlib.suppress(QueueUnavailableError):
                pause = await self._owner.connections.fetchval(_NEXT, self.queue)
        if pause is None or pause <= 0:
            # What is ready but not ours is another's, or held for its single consumer.
            pause = _IDLE_SECONDS if pause is None else _IDLE_SECONDS / 4
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(float(pause) + 0.005, _IDLE_SECONDS)):
                await self._wake.wait()

    def _notice(self, payload: str) -> None:
        if payload in ("", self.queue):
            self._wake.set()

    def _let_go(self, delivery: Delivery) -> None:
        self._held.discard(delivery.tag)
        self._wake.set()

    async def _make_own(self) -> None:
        if self._own is not None:
            binding = self._own

            async def work(connection: Connection) -> None:
                async with connection.transaction():
                    await _declare_queue(connection, Queue(self.queue, (binding,)))
                    await connection.execute(
                        "update queue set alive_until = clock_timestamp() + make_interval(secs => $2) where name = $1",
                        self.queue, self._owner.lease_seconds,
                    )  # fmt: skip

            await self._owner.connections.call(work)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._owner.lease_seconds / 4)
            with contextlib.suppress(QueueUnavailableError):
                lost = await self._owner.connections.fetchval(
                    "select beat($1, $2, $3, $4)",
                    self.queue, self._id, [*self._held], self._owner.lease_seconds,
                )  # fmt: skip
                self._held.difference_update(lost or ())
                if self._own is not None and not await self._exists():
                    await self._make_own()


def pattern(routing_key: str) -> str:
    """A regular expression for `'.' || routing key` that matches what a topic exchange would."""
    words = {"*": r"\.[^.]+", "#": r"(\.[^.]+)*"}
    return "^" + "".join(words.get(word) or r"\." + re.escape(word) for word in routing_key.split(".")) + "$"


async def _declare_exchange(connection: Connection, exchange: Exchange) -> None:
    kind = await connection.fetchval(
        "with made as (insert into exchange values ($1, $2) on conflict do nothing returning kind) "
        "select kind from made union all select kind from exchange where name = $1",
        exchange.name, exchange.kind,
    )  # fmt: skip
    if kind != exchange.kind:
        raise QueueChangedError(exchange.name, f"its kind is {kind}")


async def _declare_queue(connection: Connection, queue: Queue) -> None:
    await connection.execute(
        "insert into queue (name, ttl, dead_letter, single_active) values ($1, $2, $3, $4) on conflict do nothing",
        queue.name, queue.ttl, queue.dead_letter, queue.single_active,
    )  # fmt: skip
    row: Any = await connection.fetchrow(
        "select ttl, dead_letter, single_active from queue where name = $1", queue.name
    )
    if tuple(row) != (queue.ttl, queue.dead_letter, queue.single_active):
        raise QueueChangedError(queue.name, f"ttl, dead letters and single consumer are {tuple(row)}")
    for binding in queue.bindings:
        try:
            await connection.execute(
                "insert into binding values ($1, $2, $3, $4) on conflict do nothing",
                binding.exchange, binding.routing_key, queue.name, pattern(binding.routing_key),
            )  # fmt: skip
        except asyncpg.ForeignKeyViolationError:
            raise QueueChangedError(queue.name, f"exchange {binding.exchange!r} does not exist") from None
