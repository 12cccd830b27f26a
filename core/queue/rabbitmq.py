"""The work queue on RabbitMQ (3.10 and newer): quorum queues, confirms, mandatory publishing.

A consumer has a connection of its own and makes everything anew when any of it breaks, also where
only the broker cancelled it (a queue's leader moved, a node drained). Publishing is pipelined on
one channel, whose order the broker keeps.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    PublishError,
)

from core.log import Logger
from core.queue.api import (
    BROWSE_BYTES,
    BY_ROUTING_KEY,
    PATIENCE,
    Binding,
    Delivery,
    Depth,
    Exchange,
    Headers,
    NewMessage,
    Queue,
    QueueChangedError,
    QueueUnavailableError,
    UnknownQueueError,
    UnroutableError,
)
from core.settings import QueueSettings
from core.tasks import cancel

_CONNECT_SECONDS: Final = 5.0
_HEARTBEAT: Final = 10
_FIRST_PAUSE: Final = 0.1
_LAST_PAUSE: Final = 2.0
_PIPELINE: Final = 200
"""Most messages that wait for their confirms at once."""
_NO_LIMIT: Final = 1_000_000
"""Deliveries of one message. Newer brokers drop it after 20; `core.messaging` buries it instead."""
_BROKEN: Final = (*CONNECTION_EXCEPTIONS, TimeoutError)

T = TypeVar("T")
_log = Logger("headrace.queue")


class RabbitQueue:
    """Args:
    settings: hosts, virtual host, user and password.
    patience: seconds that a call waits for a broker that is away.
    """

    def __init__(self, settings: QueueSettings, *, patience: float = PATIENCE) -> None:
        self._urls = itertools.cycle(urls(settings))
        self._hosts = urlsplit(settings.queue_url).netloc
        self._patience = patience
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._publisher: AbstractChannel | None = None
        # They log a stack for each lost connection; what matters of it is ours to log.
        for name in ("aio_pika", "aiormq"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._disconnect()

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        await self._call(partial(_declare, exchanges=exchanges, queues=queues))

    async def delete(self, queue: str) -> None:
        async def work(channel: AbstractChannel) -> None:
            await channel.queue_delete(queue)

        await self._call(work)

    async def publish(self, messages: Sequence[NewMessage]) -> None:
        refused: list[NewMessage] = []
        left = list(messages)
        while left:
            left = left[await self._call(partial(_publish, messages=pipeline(left), refused=refused)) :]
        if refused:
            raise UnroutableError(refused)

    @asynccontextmanager
    async def consume(self, queue: str, *, prefetch: int) -> AsyncIterator["RabbitConsumer"]:
        async def passive(channel: AbstractChannel) -> AbstractQueue:
            return await channel.get_queue(queue)

        async with RabbitConsumer(self, queue, prefetch, passive).running() as consumer:
            yield consumer

    @asynccontextmanager
    async def subscribe(self, binding: Binding, *, prefetch: int) -> AsyncIterator["RabbitConsumer"]:
        async def own(channel: AbstractChannel) -> AbstractQueue:
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            await queue.bind(binding.exchange, binding.routing_key)
            return queue

        async with RabbitConsumer(self, f"of {binding.exchange}", prefetch, own).running() as consumer:
            # Without this a message published at once after entering could be missed.
            await consumer.started.wait()
            yield consumer

    @asynccontextmanager
    async def browse(
        self, queue: str, limit: int, max_bytes: int = BROWSE_BYTES
    ) -> AsyncIterator[tuple["RabbitConsumer", Sequence[Delivery]]]:
        consumer = RabbitConsumer(self, queue, limit, None)
        connection = await self._reach()
        try:
            channel = await connection.channel()
            deliveries: list[Delivery] = []
            size = 0
            try:
                source = await channel.get_queue(queue)
                while (
                    len(deliveries) < limit and size < max_bytes and (message := await source.get(fail=False))
                ):
                    deliveries.append(consumer.hold(message))
                    size += len(message.body)
            except ChannelNotFoundEntity:
                raise UnknownQueueError(queue) from None
            except _BROKEN as error:
                raise QueueUnavailableError(self._away(error)) from error
            try:
                yield consumer, deliveries
            finally:
                await consumer.give_back()
        finally:
            await _close(connection)

    async def depths(self, queues: Collection[str]) -> dict[str, Depth]:
        found: dict[str, Depth] = {}

        for name in queues:
            with contextlib.suppress(ChannelNotFoundEntity):
                found[name] = await self._call(partial(_depth, name=name))
        return found

    async def connect(self) -> AbstractConnection:
        """A connection to the next of the hosts. Raises: what is in `CONNECTION_EXCEPTIONS`, TimeoutError."""
        return await aio_pika.connect(next(self._urls), timeout=_CONNECT_SECONDS)

    async def _reach(self) -> AbstractConnection:
        """The same with patience. Raises: QueueUnavailableError."""
        async with self._patiently() as again:
            while True:
                try:
                    return await self.connect()
                except _BROKEN as error:
                    await again(error)

    async def _call(self, work: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        """Run `work` with the publishing channel, again where the connection broke.

        Raises: QueueUnavailableError, and what the broker refuses.
        """
        async with self._patiently() as again, self._lock:
            while True:
                try:
                    return await work(await self._channel())
                except (ChannelNotFoundEntity, ChannelPreconditionFailed):
                    self._publisher = None  # such a refusal closes the channel
                    raise
                except _BROKEN as error:
                    await self._disconnect()
                    await again(error)

    async def _channel(self) -> AbstractChannel:
        if self._connection is None or self._connection.is_closed:
            self._connection = await self.connect()
            self._publisher = None
        if self._publisher is None or self._publisher.is_closed:
            self._publisher = await self._connection.channel(on_return_raises=True)
        return self._publisher

    async def _disconnect(self) -> None:
        connection, self._connection, self._publisher = self._connection, None, None
        if connection is not None:
            await _close(connection)

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[Callable[[BaseException], Awaitable[None]]]:
        """Gives what to call after a failure: it pauses, or raises QueueUnavailableError when it is enough."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, _FIRST_PAUSE

        async def again(error: BaseException) -> None:
            nonlocal pause
            if loop.time() >= deadline:
                raise QueueUnavailableError(self._away(error)) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)

        try:
            async with asyncio.timeout_at(deadline + _CONNECT_SECONDS):
                yield again
        except TimeoutError as error:
            await self._disconnect()
            raise QueueUnavailableError(self._away(error)) from error

    def _away(self, error: BaseException) -> str:
        return (
            f"RabbitMQ at {self._hosts} does not answer ({type(error).__name__}: {error}); "
            "see `headrace status`"
        )


class RabbitConsumer:
    """One consumer; see `core.queue.api.Consumer`."""

    def __init__(
        self,
        owner: RabbitQueue,
        name: str,
        prefetch: int,
        source: Callable[[AbstractChannel], Awaitable[AbstractQueue]] | None,
    ) -> None:
        self._owner, self._name, self._prefetch, self._source = owner, name, prefetch, source
        self._ready: asyncio.Queue[Delivery] = asyncio.Queue()
        self._held: dict[int, AbstractIncomingMessage] = {}
        self._tags = itertools.count(1)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.started = asyncio.Event()
        self.consuming = False

    async def get(self) -> Delivery:
        while True:
            if self._failed.done():
                raise UnknownQueueError(self._name)
            getting = asyncio.ensure_future(self._ready.get())
            try:
                await asyncio.wait((getting, self._failed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    getting.cancel()
            if getting.done() and not getting.cancelled():
                delivery = getting.result()
                # What a broken channel had brought comes again by itself.
                if delivery.tag in self._held:
                    return delivery

    async def ack(self, delivery: Delivery) -> bool:
        message = self._held.pop(delivery.tag, None)
        if message is None:
            return False
        try:
            await message.ack()
        except _BROKEN:
            return False
        return True

    async def nack(self, delivery: Delivery) -> None:
        if (message := self._held.pop(delivery.tag, None)) is not None:
            with contextlib.suppress(*_BROKEN):
                await message.nack(requeue=True)

    async def give_back(self) -> None:
        """Everything that is held."""
        for message in self._held.values():
            with contextlib.suppress(*_BROKEN):
                await message.nack(requeue=True)
        self._held.clear()

    def hold(self, message: AbstractIncomingMessage) -> Delivery:
        """Take a message in; it is ours until it is acknowledged or its channel breaks."""
        tag = next(self._tags)
        self._held[tag] = message
        count = message.headers.get("x-delivery-count", 1 if message.redelivered else 0)
        return Delivery(
            tag, message.message_id or "", message.routing_key or "", message.body,
            _headers_of(message), (count if isinstance(count, int) else 0) + 1,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RabbitConsumer"]:
        running = asyncio.create_task(self._run(), name=f"queue {self._name}")
        try:
            yield self
        finally:
            await cancel(running)
            if self._failed.done():
                self._failed.exception()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._consume()
                pause = _FIRST_PAUSE
            except ChannelNotFoundEntity:
                if not self.started.is_set():
                    self._failed.set_result(None)
                    return
                _log.warn("queue is gone, waiting for it", queue=self._name)
            except _BROKEN as error:
                _log.warn(
                    "consumer is cut off, connecting again", queue=self._name,
                    error=f"{type(error).__name__}: {error}"[:500],
                )  # fmt: skip
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)

    async def _consume(self) -> None:
        """Consume until something breaks."""
        assert self._source is not None
        connection = await self._owner.connect()
        try:
            channel = await connection.channel()
            lost = asyncio.Event()
            channel.close_callbacks.add(lambda *_: lost.set())
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: lost.set())
            await channel.set_qos(prefetch_count=self._prefetch)
            queue = await self._source(channel)
            await queue.consume(self._take)
            self.consuming = True
            self.started.set()
            await lost.wait()
            _log.warn("consumer lost its channel", queue=self._name)
        finally:
            self.consuming = False
            self._held.clear()
            await _close(connection)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._ready.put_nowait(self.hold(message))


def urls(settings: QueueSettings) -> list[str]:
    """One address for each host of the setting, with the credentials in it."""
    parts = urlsplit(settings.queue_url)
    password = settings.queue_password.get_secret_value() if settings.queue_password else ""
    login = f"{quote(settings.queue_user, safe='')}:{quote(password, safe='')}"
    path = parts.path or "/"
    return [
        f"{parts.scheme}://{login}@{host}{path}?heartbeat={_HEARTBEAT}" for host in parts.netloc.split(",")
    ]


def pipeline(messages: Sequence[NewMessage]) -> list[NewMessage]:
    """The longest head of the list that may be on its way at once.

    The client finds a returned message by its id, so no id may be in it twice.
    """
    seen: set[str] = set()
    head = []
    for message in messages[:_PIPELINE]:
        if message.id in seen:
            break
        seen.add(message.id)
        head.append(message)
    return head


async def _publish(
    channel: AbstractChannel, *, messages: Sequence[NewMessage], refused: list[NewMessage]
) -> int:
    """Publish these; returns how many of them, from the first, are settled (taken or refused).

    Where the connection breaks all of them are published again: in order, some perhaps twice.
    """
    exchanges = {
        name: await channel.get_exchange(name, ensure=False) for name in {m.exchange for m in messages}
    }
    results = await asyncio.gather(
        *(
            exchanges[message.exchange].publish(_outgoing(message), message.routing_key, mandatory=True)
            for message in messages
        ),
        return_exceptions=True,
    )
    returned = []
    for message, result in zip(messages, results, strict=True):
        if isinstance(result, PublishError):
            returned.append(message)
        elif isinstance(result, ChannelNotFoundEntity) and len(messages) == 1:
            returned.append(message)  # there is no such exchange
        elif isinstance(result, ChannelNotFoundEntity):
            # One of them closed the channel for all: find it by going one by one.
            return await _alone(channel, messages[0], refused)
        elif isinstance(result, BaseException):
            raise result
    refused += returned
    return len(messages)


async def _depth(channel: AbstractChannel, *, name: str) -> Depth:
    queue = await channel.get_queue(name)
    return Depth(queue.declaration_result.message_count or 0, None)


async def _alone(channel: AbstractChannel, message: NewMessage, refused: list[NewMessage]) -> int:
    await channel.reopen()
    return await _publish(channel, messages=[message], refused=refused)


def _outgoing(message: NewMessage) -> aio_pika.Message:
    return aio_pika.Message(
        message.body,
        message_id=message.id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        content_type="application/json",
        headers={name: value.decode("utf-8", "replace") for name, value in message.headers},
    )


def _headers_of(message: AbstractIncomingMessage) -> Headers:
    """The publisher's headers, without what the broker added on the way."""
    return tuple(
        (name, value.encode() if isinstance(value, str) else value)
        for name, value in message.headers.items()
        if isinstance(value, str | bytes) and not name.startswith(("x-first-death-", "x-last-death-"))
    )


async def _declare(
    channel: AbstractChannel, *, exchanges: Sequence[Exchange], queues: Sequence[Queue]
) -> None:
    name = ""
    try:
        for exchange in exchanges:
            name = exchange.name
            await channel.declare_exchange(name, aio_pika.ExchangeType(exchange.kind), durable=True)
        for queue in queues:
            name = queue.name
            declared = await channel.declare_queue(name, durable=True, arguments=arguments(queue))
            for binding in queue.bindings:
                await declared.bind(binding.exchange, binding.routing_key)
    except (ChannelPreconditionFailed, ChannelNotFoundEntity) as error:
        raise QueueChangedError(name, str(error)) from error


def arguments(queue: Queue) -> dict[str, Any]:
    """How RabbitMQ declares it."""
    found: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}
    if queue.single_active:
        found["x-single-active-consumer"] = True
    if queue.ttl is not None:
        found["x-message-ttl"] = round(queue.ttl.total_seconds() * 1000)
    if queue.dead_letter is not None:
        # A message leaves only once the next queue has confirmed it; that needs `reject-publish`.
        found |= {
            "x-dead-letter-exchange": "",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        if queue.dead_letter != BY_ROUTING_KEY:
            found["x-dead-letter-routing-key"] = queue.dead_letter
    return found


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(*_BROKEN):
        async with asyncio.timeout(2):
            await connection.close()
