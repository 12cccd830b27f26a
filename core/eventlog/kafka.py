"""The event log on Apache Kafka (aiokafka): idempotent producer, acks=all, zstd; reads without groups."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Self, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError
from aiokafka.errors import OffsetOutOfRangeError as KafkaOutOfRangeError

from core.eventlog import headers
from core.eventlog.api import (
    AppendUnknownError,
    Bounds,
    LogUnavailableError,
    NewRecord,
    OffsetOutOfRangeError,
    Position,
    Record,
    RecordTooLargeError,
    Revoked,
    TopicChangedError,
    TopicInfo,
    UnknownTopicError,
)
from core.eventlog.kafka_admin import BATCH_BYTES, PATIENCE, KafkaAdmin, patiently
from core.eventlog.kafka_group import FETCH_BYTES, FETCH_WAIT_MS, KafkaGroupConsumer, record_of
from core.eventlog.kafka_tail import tail
from core.eventlog.partitioner import partition_for
from core.settings import EventLogSettings
from core.topology import Topic

T = TypeVar("T")

READ_RECORDS: Final = 10_000
_IDLE_SECONDS: Final = 15.0
_IDLE_READERS: Final = 4
_LINGER_MS: Final = 2
_LARGEST_REQUEST: Final = 16_777_216
_SINGLES: Final = 20
"""Appends of up to this many records share batches with others; larger ones make their own."""


class KafkaEventLog:
    """Implements `core.eventlog.api.EventLog`."""

    def __init__(
        self, settings: EventLogSettings, *, session_timeout: float = 6.0, patience: float = PATIENCE
    ) -> None:
        self._servers = settings.eventlog_url.removeprefix("kafka://").rstrip("/")
        self._session_timeout, self._patience = session_timeout, patience
        self._admin = KafkaAdmin(self._servers, patience)
        self._limits: dict[str, tuple[int, int]] = {}
        self._idle: list[Any] = []
        self._producer: Any = None
        self._looker: Any = None
        self._ending: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._producer is not None:
            self._retire(self._producer)
        await asyncio.gather(*self._ending)
        await self._drop_looker()
        while self._idle:
            await _stop(self._idle.pop())
        await self._admin.close()

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        await self._admin.ensure(topics)
        for topic in topics:
            self._limits.pop(topic.name, None)

    async def delete_topic(self, name: str) -> None:
        self._limits.pop(name, None)
        await self._admin.delete(name)

    async def topic(self, name: str) -> TopicInfo:
        topic = await self._admin.describe(name)
        return TopicInfo(name, str(topic.id), topic.partitions)

    async def _load_limits(self, name: str) -> tuple[int, int]:
        """Partitions and largest record of a topic, asked for now."""
        self._limits.pop(name, None)
        topic = await self._admin.describe(name)
        self._limits[name] = limits = (topic.partitions, await self._admin.max_record_bytes(name))
        return limits

    async def append(self, records: Sequence[NewRecord]) -> list[Position]:
        names = {record.topic for record in records}
        limits = {name: self._limits.get(name) or await self._load_limits(name) for name in names}
        for record in records:
            if (size := headers.record_size(record)) > limits[record.topic][1]:
                raise RecordTooLargeError(
                    f"a record of {size} bytes for {record.topic!r} is above its limit of "
                    f"{limits[record.topic][1]}; nothing of this batch was appended"
                )
        places = [(record.topic, partition_for(record.key, limits[record.topic][0])) for record in records]
        producer = await self._patiently(self._started_producer, "start a producer")
        try:
            if len(records) <= _SINGLES:
                return await _append_singles(producer, records, places)
            return await _append_batches(producer, records, places)
        except KafkaError as error:
            # A batch that ran out of time leaves a hole in the producer's sequence: it must not be used again.
            self._retire(producer)
            with contextlib.suppress(LogUnavailableError):
                for name in names:
                    await self._load_limits(name)
            raise AppendUnknownError(
                f"no answer for {len(records)} records to {', '.join(sorted(names))} ({error!r}); "
                "they may or may not be in the log: append them again"
            ) from error

    async def _started_producer(self) -> Any:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._servers,
                    enable_idempotence=True,
                    acks="all",
                    compression_type="zstd",
                    linger_ms=_LINGER_MS,
                    max_batch_size=BATCH_BYTES,
                    max_request_size=_LARGEST_REQUEST,
                    request_timeout_ms=int(self._patience * 1000),
                    metadata_max_age_ms=30_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def _retire(self, producer: Any) -> None:
        """Let the next append make a new producer; this one ends behind it."""
        if self._producer is producer:
            self._producer = None
            ending = asyncio.create_task(_stop(producer))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _patiently(
        self, work: Callable[[], Awaitable[T]], what: str, failed: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        return await patiently(work, what, patience=self._patience, failed=failed)

    async def bounds(self, topic: str) -> dict[int, Bounds]:
        keys = await self._partitions(topic)

        async def look() -> dict[int, Bounds]:
            looker = await self._started_looker()
            low, high = await asyncio.gather(looker.beginning_offsets(keys), looker.end_offsets(keys))
            return {key.partition: Bounds(low[key], high[key]) for key in keys}

        return await self._patiently(look, f"find the bounds of {topic}", failed=self._drop_looker)

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        keys = await self._partitions(topic)

        async def look() -> dict[int, int]:
            looker = await self._started_looker()
            found = await looker.offsets_for_times(dict.fromkeys(keys, timestamp_ms))
            high = await looker.end_offsets(keys)
            return {key.partition: high[key] if found[key] is None else found[key].offset for key in keys}

        return await self._patiently(look, f"find offsets of {topic} by time", failed=self._drop_looker)

    async def _partitions(self, topic: str) -> list[KafkaPartition]:
        return [
            KafkaPartition(topic, partition)
            for partition in range((await self._admin.describe(topic)).partitions)
        ]

    async def _started_looker(self) -> Any:
        """A consumer that never fetches, so that its look-ups do not wait behind a fetch."""
        async with self._starting:
            if self._looker is None:
                self._looker = await _consumer(self._servers)
            return self._looker

    async def _drop_looker(self) -> None:
        looker, self._looker = self._looker, None
        if looker is not None:
            await _stop(looker)

    async def read(
        self, topic: str, partition: int, start: int, end: int
    ) -> AsyncGenerator[list[Record], None]:
        await self._check_range(topic, partition, start, end)
        if start == end:
            return
        key = KafkaPartition(topic, partition)
        async with self._reader() as consumer:
            consumer.assign([key])
            consumer.seek(key, start)
            at = start
            while at < end:
                batch = await self._next(consumer, key, at, end)
                yield batch
                at += len(batch)

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Any]:
        """A consumer without a group; one that has read to its end is used again."""
        if self._idle:
            consumer = self._idle.pop()
        else:
            consumer = await self._patiently(lambda: _consumer(self._servers), "start a reader")
        try:
            yield consumer
        except BaseException:
            await _stop(consumer)
            raise
        consumer.unsubscribe()
        if len(self._idle) < _IDLE_READERS:
            self._idle.append(consumer)
        else:
            await _stop(consumer)

    async def _next(self, consumer: Any, key: KafkaPartition, at: int, end: int) -> list[Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _IDLE_SECONDS
        while True:
            try:
                found = await consumer.getmany(key, timeout_ms=500, max_records=min(READ_RECORDS, end - at))
            except KafkaOutOfRangeError:
                await self._check_range(key.topic, key.partition, at, end)
                found = {}
            messages = found.get(key, [])
            if messages:
                if messages[0].offset != at or messages[-1].offset - at + 1 != len(messages):
                    raise TopicChangedError(
                        f"{key.topic}/{key.partition} changed while [{at}, {end}) was read; ask for its id again"
                    )
                return [record_of(message) for message in messages]
            if loop.time() >= deadline:
                raise LogUnavailableError(
                    f"no record of {key.topic}/{key.partition} at {at} in {_IDLE_SECONDS:.0f} s; see `headrace status`"
                )

    async def _check_range(self, topic: str, partition: int, start: int, end: int) -> None:
        bounds = (await self.bounds(topic)).get(partition)
        if bounds is None:
            raise ValueError(f"topic {topic!r} has no partition {partition}")
        for offset in (start, end):
            if not bounds.low <= offset <= bounds.high:
                raise OffsetOutOfRangeError(topic, partition, offset, bounds)

    async def tail(self, topic: str, positions: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        consumer = await self._patiently(lambda: _consumer(self._servers), "start a tail")
        try:
            batches = tail(consumer, topic, positions, describe=self.topic, bounds=self.bounds)
            async with aclosing(batches):
                async for batch in batches:
                    yield batch
        finally:
            await _stop(consumer)

    async def purge(self, topic: str, before: Mapping[int, int]) -> dict[int, int]:
        for partition, offset in before.items():
            if offset < 0:
                raise ValueError(f"{topic}/{partition}: cannot purge up to {offset}; give a real offset")
        bounds = await self.bounds(topic)
        for partition, offset in before.items():
            if partition not in bounds:
                raise ValueError(f"topic {topic!r} has no partition {partition}")
            if offset > bounds[partition].high:
                raise OffsetOutOfRangeError(topic, partition, offset, bounds[partition])
        return await self._admin.purge(topic, before)

    async def expire(self) -> None:
        """The brokers do it by themselves (`retention.ms`)."""

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        on_revoked: Revoked | None = None,
    ) -> KafkaGroupConsumer:
        return KafkaGroupConsumer(
            self._servers,
            topics=tuple(topics),
            group=group,
            from_start=from_start,
            on_revoked=on_revoked,
            session_timeout=self._session_timeout,
            patience=self._patience,
            exists=self.topic,
            bounds=self.bounds,
        )

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        try:
            partitions = (await self._admin.describe(topic)).partitions
        except UnknownTopicError:
            return {}
        return await self._admin.committed(group, topic, partitions)


async def _stop(client: Any) -> None:
    with contextlib.suppress(KafkaError, TimeoutError, OSError):
        async with asyncio.timeout(PATIENCE):
            await client.stop()


async def _consumer(servers: str) -> Any:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=FETCH_BYTES,
    )
    try:
        await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    return consumer


async def _append_singles(
    producer: Any, records: Sequence[NewRecord], places: Sequence[tuple[str, int]]
) -> list[Position]:
    futures = [
        _read_later(
            await producer.send(topic, record.value, record.key, partition, headers=list(record.headers))
        )
        for record, (topic, partition) in zip(records, places, strict=True)
    ]
    return [
        Position(topic, partition, (await future).offset)
        for (topic, partition), future in zip(places, futures, strict=True)
    ]


async def _append_batches(
    producer: Any, records: Sequence[NewRecord], places: Sequence[tuple[str, int]]
) -> list[Position]:
    """One future a batch instead of one a record."""
    open_batches: dict[tuple[str, int], Any] = {}
    closed: list[tuple[tuple[str, int], Any]] = []
    ranks: list[tuple[Any, int]] = []
    for record, place in zip(records, places, strict=True):
        builder = open_batches.get(place)
        if builder is None or not _fits(builder, record):
            if builder is not None:
                closed.append((place, builder))
            builder = open_batches[place] = producer.create_batch()
            _fits(builder, record)
        ranks.append((builder, builder.record_count() - 1))
    closed += open_batches.items()
    starts: dict[int, Any] = {}
    for (topic, partition), builder in closed:
        builder.close()
        starts[id(builder)] = _read_later(await producer.send_batch(builder, topic, partition=partition))
    for start in starts.values():
        await start
    return [
        Position(topic, partition, starts[id(builder)].result().offset + rank)
        for (topic, partition), (builder, rank) in zip(places, ranks, strict=True)
    ]


def _fits(builder: Any, record: NewRecord) -> bool:
    added = builder.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers))
    return added is not None


def _read_later(future: Any) -> Any:
    """The same future, whose failure nobody needs to read when another's is raised first."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
