"""Work on the messages of a queue: attempts, retry ladder, dead letters (written once, above both servers).

    async with database.writer() as connection:
        await queues.enqueue(connection, "document.index", "index", job.encode(), tenant_id)

    consumer = QueueConsumer(queue, "document.index", handler)
    await consumer.run()

A handler that returns is done. One that raises is tried again after each pause of the family's ladder
(10 s, 60 s, 300 s): one attempt and three more, then the message lies in `<queue>.dlq` with the reason.
`Permanent(reason)` goes there at once. A handler may see a message twice (its process died, an answer
was lost); where that matters it asks `first_time` in the transaction of the effect.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from opentelemetry import trace
from sqlalchemy.ext.asyncio import AsyncConnection

from core import telemetry
from core.clock import now, rfc3339
from core.log import Logger
from core.messaging import inbox
from core.messaging.queue_outbox import FAMILY, FIRST_SEEN, TENANT, enqueue
from core.messaging.queue_topology import retry_exchange
from core.messaging.trace import message_span
from core.messaging.watchdog import Watchdog
from core.queue.api import (
    DEFAULT_EXCHANGE,
    Consumer,
    Delivery,
    Headers,
    NewMessage,
    QueueError,
    QueueUnavailableError,
    WorkQueue,
)
from core.tasks import cancel
from core.topology import QueueFamily, dead_letters_of, family_of

__all__ = ["FAMILY", "Message", "Permanent", "QueueConsumer", "enqueue", "first_time"]

ATTEMPT: Final = "x-attempt"
REASON: Final = "x-reason"
DIED: Final = "x-died-at"
GROUP: Final = "workers"
"""What metrics call the consumers of a queue."""
MAX_DELIVERIES: Final = 20
"""A message given out so often without an answer kills its consumers: it is buried."""
STOP_SECONDS: Final = 5.0
_MAX_REASON: Final = 500

_log = Logger("headrace.queues")


class Permanent(Exception):  # noqa: N818 - reads as what the handler says of the message
    """Raised by a handler: this message will never succeed; the text is the reason kept with it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a handler sees it."""

    queue: str
    id: str
    body: bytes
    headers: Headers
    routing_key: str
    """What it came by; after a retry that is the name of its queue."""
    tenant: str
    attempt: int
    """From 1."""
    first_seen: datetime


Handler = Callable[[Message], Awaitable[None]]


def message_of(queue: str, delivery: Delivery) -> Message:
    """Reads the headers; a missing or broken one counts as a first attempt, seen now."""
    values = {name: value.decode("utf-8", "replace") for name, value in delivery.headers}
    attempt = values.get(ATTEMPT, "")
    try:
        first_seen = datetime.fromisoformat(values.get(FIRST_SEEN, ""))
        if first_seen.tzinfo is None:
            first_seen = now()
    except ValueError:
        first_seen = now()
    return Message(
        queue=queue,
        id=delivery.id,
        body=delivery.body,
        headers=delivery.headers,
        routing_key=delivery.routing_key,
        tenant=values.get(TENANT) or inbox.NO_TENANT,
        attempt=int(attempt) if attempt.isdecimal() and int(attempt) else 1,
        first_seen=first_seen,
    )


async def first_time(connection: AsyncConnection, message: Message) -> bool:
    """False where this message has had its effect already; else it is marked, with this transaction."""
    return not await inbox.seen(connection, message.queue, message.id, tenant_id=message.tenant)


class QueueConsumer:
    """Consumes one queue until `stop()`.

    Args:
        queue: a started work queue.
        name: the queue, `document.index`.
        handler: works on one message.
        family: where the name is not one of `core.topology`.
        concurrency: messages worked on at once; one where the family keeps the order.
    """

    def __init__(
        self,
        queue: WorkQueue,
        name: str,
        handler: Handler,
        *,
        family: QueueFamily | None = None,
        concurrency: int = 8,
    ) -> None:
        self._queue, self._name, self._handler = queue, name, handler
        self._family = family or family_of(name)
        self._prefetch = 1 if self._family.single_active else concurrency
        self._stopping = asyncio.Event()
        self._working: set[asyncio.Task[None]] = set()
        self.watchdog = Watchdog(name, GROUP)

    def stop(self) -> None:
        """Ask `run` to end: what runs is finished, what waits goes back."""
        self._stopping.set()

    async def run(self) -> None:
        """Raises: UnknownQueueError where the queue does not exist."""
        with self.watchdog.expected():
            async with self._queue.consume(self._name, prefetch=self._prefetch) as consumer:
                helpers = [
                    asyncio.create_task(self._beat(consumer), name=f"queue-{self._name}-watchdog"),
                    asyncio.create_task(self._stopping.wait()),
                ]
                try:
                    await self._take(consumer, helpers[1])
                finally:
                    if self._working:
                        await asyncio.wait(self._working, timeout=STOP_SECONDS)
                    await cancel(*helpers, *self._working)

    async def _take(self, consumer: Consumer, stopping: "asyncio.Task[object]") -> None:
        while not stopping.done():
            getting = asyncio.create_task(consumer.get())
            try:
                await asyncio.wait((getting, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    await cancel(getting)
            if getting.cancelled():
                return
            working = asyncio.create_task(self._work(consumer, getting.result()))
            self._working.add(working)
            working.add_done_callback(self._working.discard)

    async def _beat(self, consumer: Consumer) -> None:
        while True:
            if consumer.consuming:
                self.watchdog.beat(())
            await asyncio.sleep(1)

    async def _work(self, consumer: Consumer, delivery: Delivery) -> None:
        message = message_of(self._name, delivery)
        try:
            with trace.use_span(message_span(self._name, message.id, message.headers), end_on_exit=True):
                await self._attempt(message, delivery.deliveries)
            await consumer.ack(delivery)
        except QueueError as error:
            # Neither done nor given up: it goes back and comes again.
            _log.warn("queue is away", queue=self._name, id=message.id, error=str(error)[:500])
            with contextlib.suppress(QueueError):
                await consumer.nack(delivery)
        except asyncio.CancelledError:
            with contextlib.suppress(QueueError):
                await consumer.nack(delivery)
            raise

    async def _attempt(self, message: Message, deliveries: int) -> None:
        """Returns once the message is done, waits for its next attempt, or is among the dead letters."""
        if deliveries > MAX_DELIVERIES:
            await self._bury(
                message, f"given out {deliveries} times without an answer: it ends its consumers"
            )
            return
        if self._family.ttl and now() - message.first_seen > self._family.ttl:
            await self._bury(message, f"expired: older than {_hours(self._family.ttl)}")
            return
        try:
            await self._handler(message)
        except Permanent as error:
            await self._bury(message, str(error) or "refused for good")
        except Exception as error:
            telemetry.CONSUMER_FAILURES.labels(self._name, GROUP).inc()
            await self._again(message, f"{type(error).__name__}: {error}")

    async def _again(self, message: Message, reason: str) -> None:
        ladder = self._family.ladder
        if message.attempt > len(ladder):
            await self._bury(message, reason)
            return
        pause = ladder[message.attempt - 1]
        life = self._family.ttl
        if life and now() + pause - message.first_seen > life:
            await self._bury(message, f"expired: older than {_hours(life)} at its next attempt; {reason}")
            return
        _log.warn(
            "attempt failed", queue=self._name, id=message.id, attempt=message.attempt,
            again_in=pause.total_seconds(), error=reason[:500],
        )  # fmt: skip
        headers = replace(message, {ATTEMPT: str(message.attempt + 1), REASON: reason[:_MAX_REASON]})
        again = NewMessage(retry_exchange(pause), self._name, message.id, message.body, headers)
        await self._publish(again)

    async def _bury(self, message: Message, reason: str) -> None:
        telemetry.QUEUE_DEAD.labels(self._name).inc()
        _log.error(
            "message given up", queue=self._name, id=message.id, attempts=message.attempt,
            error=reason[:500],
        )  # fmt: skip
        headers = replace(
            message,
            {ATTEMPT: str(message.attempt), REASON: reason[:_MAX_REASON], DIED: rfc3339(now())},
        )
        dead = dead_letters_of(self._name)
        await self._publish(NewMessage(DEFAULT_EXCHANGE, dead, message.id, message.body, headers))

    async def _publish(self, message: NewMessage) -> None:
        """Waits for a queue that is away, as long as we run: failing would only repeat the attempt."""
        while True:
            try:
                await self._queue.publish([message])
                return
            except QueueUnavailableError:
                if self._stopping.is_set():
                    raise


def replace(message: Message, values: dict[str, str]) -> Headers:
    """The message's headers with some of them set; `x-first-seen` is always there."""
    wanted = {FIRST_SEEN: rfc3339(message.first_seen), **values}
    kept = tuple(pair for pair in message.headers if pair[0] not in wanted)
    return (*kept, *((name, value.encode()) for name, value in wanted.items()))


def _hours(life: timedelta) -> str:
    return f"{life.total_seconds() / 3600:g} h"
