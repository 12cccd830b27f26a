"""A member of a Kafka consumer group: manual commits, no automatic reset, hand-over before revocation."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
)
from aiokafka.errors import OffsetOutOfRangeError as KafkaOutOfRangeError

from core.eventlog.api import (
    Bounds,
    LogUnavailableError,
    OffsetOutOfRangeError,
    Record,
    Revoked,
    TopicPartition,
)
from core.eventlog.kafka_admin import away, patiently
from core.log import Logger

_log = Logger(__name__)

FETCH_BYTES: Final = 4_194_304
FETCH_WAIT_MS: Final = 500
CLOSE_SECONDS: Final = 10.0
_AWAY_PAUSE: Final = 0.2


def record_of(message: Any) -> Record:
    """Our record of aiokafka's."""
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.key or b"",
        message.value or b"",
        message.timestamp,
        message.headers,
    )


class KafkaGroupConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """Implements `core.eventlog.api.GroupConsumer`."""

    def __init__(
        self,
        servers: str,
        *,
        topics: tuple[str, ...],
        group: str,
        from_start: bool,
        on_revoked: Revoked | None,
        session_timeout: float,
        patience: float,
        exists: Callable[[str], Awaitable[object]],
        bounds: Callable[[str], Awaitable[dict[int, Bounds]]],
    ) -> None:
        self._servers, self._topics, self._group = servers, topics, group
        self._from_start, self._on_revoked, self._session_timeout = from_start, on_revoked, session_timeout
        self._exists, self._bounds, self._patience = exists, bounds, patience
        self._paused: frozenset[TopicPartition] = frozenset()
        self._revoking, self._away = False, False
        self._changed = asyncio.Event()
        self._consumer: Any = None

    async def start(self) -> None:
        for topic in self._topics:
            await self._exists(topic)
        await patiently(self._connect, f"join group {self._group}", patience=self._patience)

    async def _connect(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=int(self._session_timeout * 1000),
            heartbeat_interval_ms=int(self._session_timeout * 1000 / 4),
            rebalance_timeout_ms=int(self._session_timeout * 1000),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            metadata_max_age_ms=10_000,
        )
        consumer.subscribe(list(self._topics), listener=self)
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        # Brokers that are away at this moment let the membership run out instead.
        with contextlib.suppress(KafkaError, TimeoutError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await consumer.stop()

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        """Called by aiokafka before the group is arranged anew: hand over everything we hold."""
        held = frozenset((key.topic, key.partition) for key in revoked)
        self._revoking = True
        if not held or self._on_revoked is None:
            return
        try:
            async with asyncio.timeout(self._session_timeout / 2):
                await self._on_revoked(held)
        except TimeoutError:
            _log.warn("work in flight did not end before its partitions went on", group=self._group)
        except Exception as error:
            _log.error("handing over partitions failed, they are read again", exc=error, group=self._group)

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        """Called by aiokafka when the group is arranged."""
        del assigned
        self._revoking = False
        self._changed.set()

    def assignment(self) -> frozenset[TopicPartition]:
        if self._consumer is None or self._revoking:
            return frozenset()
        return frozenset((key.topic, key.partition) for key in self._consumer.assignment())

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused |= partitions
        for key in partitions & self.assignment():
            self._consumer.pause(KafkaPartition(*key))

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused -= partitions
        for key in partitions & self.assignment():
            self._consumer.resume(KafkaPartition(*key))
        self._changed.set()

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        for key, offset in offsets.items():
            if offset < 0:
                raise ValueError(f"{key[0]}/{key[1]}: cannot seek to {offset}")
            with contextlib.suppress(IllegalStateError):
                self._consumer.seek(KafkaPartition(*key), offset)

    async def poll(self, max_records: int, timeout: float) -> list[Record]:  # noqa: ASYNC109 - no error when it passes
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self._changed.clear()
            left = max(deadline - loop.time(), 0.0)
            active = [KafkaPartition(*key) for key in self.assignment() - self._paused]
            if not active:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
            else:
                # In steps, so that a resumed partition does not wait for the others' silence.
                records = await self._fetch(active, max_records, min(left, 0.5))
                if records:
                    return records
            if loop.time() >= deadline:
                return []

    async def _fetch(self, active: list[KafkaPartition], max_records: int, wait: float) -> list[Record]:
        try:
            found = await self._consumer.getmany(
                *active, timeout_ms=int(wait * 1000), max_records=max_records
            )
        except (NoOffsetForPartitionError, KafkaOutOfRangeError) as error:
            # aiokafka says it again at the next call as long as nobody seeks.
            with contextlib.suppress(LogUnavailableError):
                await self._place(error)
            return []
        except IllegalStateError:
            return []
        except Exception as error:
            if not away(error):
                raise
            if not self._away:
                _log.warn("Kafka away, the consumer waits", group=self._group, reason=repr(error))
            self._away = True
            await asyncio.sleep(_AWAY_PAUSE)
            return []
        self._away = False
        return [record_of(message) for messages in found.values() for message in messages]

    async def _place(self, error: NoOffsetForPartitionError | KafkaOutOfRangeError) -> None:
        """Start a partition that the group has never committed, or tell that its position is gone."""
        if isinstance(error, KafkaOutOfRangeError):
            ((key, offset),) = error.args[0].items()
            bounds = (await self._bounds(key.topic))[key.partition]
            raise OffsetOutOfRangeError(key.topic, key.partition, offset, bounds) from error
        key = error.args[0]
        bounds = (await self._bounds(key.topic))[key.partition]
        start = bounds.low if self._from_start else bounds.high
        if not self._from_start:
            # The group's next member must not start later than this one.
            await self.commit({(key.topic, key.partition): start})
        await self.seek({(key.topic, key.partition): start})

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> frozenset[TopicPartition]:
        for key, offset in offsets.items():
            if offset < 0:
                raise ValueError(f"{key[0]}/{key[1]}: cannot commit {offset}")
        held = {(key.topic, key.partition) for key in self._consumer.assignment()}
        mine = {KafkaPartition(*key): offset for key, offset in offsets.items() if key in held}
        if not mine:
            return frozenset(offsets)
        try:
            async with asyncio.timeout(self._patience):
                await self._consumer.commit(mine)
        except (CommitFailedError, IllegalStateError):
            return frozenset(offsets)
        except Exception as error:
            if not away(error):
                raise
            raise LogUnavailableError(
                f"group {self._group} could not commit: {error!r}; commit again"
            ) from error
        return frozenset(offsets) - held
