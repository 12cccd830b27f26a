"""Topics on Apache Kafka: make, alter, delete, describe, purge; answers are checked code by code.

aiokafka's admin calls do not raise for what the broker refuses, and know no topic ids.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from core.eventlog.api import EventLogError, LogUnavailableError, TopicChangedError, UnknownTopicError
from core.eventlog.kafka_protocol import AlterTopics, TopicMetadata
from core.topology import Topic

T = TypeVar("T")

PATIENCE: Final = 15.0
"""Seconds that a call waits for a broker to come back (a killed one needs about 5), where nothing else is said."""
BATCH_BYTES: Final = 262_144
_OVERHEAD: Final = BATCH_BYTES + 65_536
"""`max.message.bytes` limits whole batches, `max_record_bytes` one record: what lies between them."""
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class KafkaTopic:
    """A topic as the cluster describes it."""

    id: uuid.UUID
    partitions: int


def away(error: BaseException) -> bool:
    """Whether the error means that brokers are not there (yet), and the same call may succeed later."""
    if isinstance(error, KafkaError):
        return error.retriable or isinstance(error, KafkaConnectionError | NodeNotReadyError)
    return isinstance(error, OSError | TimeoutError)


async def patiently(
    work: Callable[[], Awaitable[T]],
    what: str,
    *,
    patience: float,
    failed: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Repeat `work` while the brokers are away.

    Raises:
        LogUnavailableError: after `patience` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            async with asyncio.timeout(max(deadline - loop.time(), 1.0)):
                return await work()
        except Exception as error:
            if not away(error):
                raise
            if loop.time() >= deadline:
                raise LogUnavailableError(
                    f"Kafka does not answer to {what} ({type(error).__name__}: {error}); see `headrace status`"
                ) from error
            if failed is not None:
                await failed()
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LAST_PAUSE)


class KafkaAdmin:
    """One admin client, made on first use and made anew after a failure."""

    def __init__(self, servers: str, patience: float) -> None:
        self._servers, self._patience = servers, patience
        self._client: Any = None
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaError, OSError):
                await client.close()

    async def call(self, work: Callable[[Any], Awaitable[T]], what: str) -> T:
        """Run `work` with the admin client, patiently."""

        async def attempt() -> T:
            return await work(await self._started())

        return await patiently(attempt, what, patience=self._patience, failed=self.close)

    async def _started(self) -> Any:
        async with self._starting:
            if self._client is None:
                client = AIOKafkaAdminClient(bootstrap_servers=self._servers, request_timeout_ms=10_000)
                try:
                    await client.start()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    async def describe(self, name: str) -> KafkaTopic:
        """Raises: UnknownTopicError."""
        described = await self.call(lambda client: _describe(client, name), f"describe topic {name}")
        if described is None:
            raise UnknownTopicError(name)
        return described

    async def max_record_bytes(self, name: str) -> int:
        """The limit that `ensure` has set."""
        limit = await self.call(
            lambda client: _max_message_bytes(client, name), f"read settings of topic {name}"
        )
        return limit - _OVERHEAD

    async def ensure(self, topics: Sequence[Topic]) -> None:
        """See `EventLog.ensure_topics`."""
        brokers = await self.call(_brokers, "count the brokers")
        copies = min(3, brokers)
        for topic in topics:
            await self._ensure(topic, copies)

    async def _ensure(self, topic: Topic, copies: int) -> None:
        described = await self.call(
            lambda client: _describe(client, topic.name), f"describe topic {topic.name}"
        )
        if described is None:
            await self.call(lambda client: _create(client, topic, copies), f"create topic {topic.name}")
            described = await self._wait_for_leaders(topic.name)
        elif described.partitions == topic.partitions:
            await self.call(lambda client: _alter(client, topic, copies), f"alter topic {topic.name}")
        if described.partitions != topic.partitions:
            raise TopicChangedError(
                f"topic {topic.name!r} has {described.partitions} partitions, not {topic.partitions}; "
                "changing them moves keys: drain it and make it anew"
            )

    async def _wait_for_leaders(self, name: str) -> KafkaTopic:
        async def ready(client: Any) -> KafkaTopic:
            described = await _describe(client, name)
            if described is None:
                raise UnknownTopicOrPartitionError(name)
            return described

        return await self.call(ready, f"elect leaders for topic {name}")

    async def delete(self, name: str) -> None:
        """Raises: UnknownTopicError."""

        async def work(client: Any) -> None:
            answer = await client.delete_topics([name])
            for _, code in answer.topic_error_codes:
                if for_code(code) is UnknownTopicOrPartitionError:
                    raise UnknownTopicError(name)
                _check(code, f"delete topic {name}")

        async def gone(client: Any) -> None:
            if await _describe(client, name) is not None:
                raise TimeoutError(f"topic {name} is still there")

        await self.call(work, f"delete topic {name}")
        await self.call(gone, f"delete topic {name}")

    async def purge(self, name: str, before: Mapping[int, int]) -> dict[int, int]:
        """Low watermarks after deleting below the offsets, which the caller has checked."""
        wanted = {
            KafkaPartition(name, partition): RecordsToDelete(offset) for partition, offset in before.items()
        }
        lows = await self.call(lambda client: client.delete_records(wanted), f"purge topic {name}")
        return {key.partition: low for key, low in lows.items()}

    async def committed(self, group: str, name: str, partitions: int) -> dict[int, int]:
        """Next offsets the group has committed."""
        wanted = [KafkaPartition(name, partition) for partition in range(partitions)]
        found = await self.call(
            lambda client: client.list_consumer_group_offsets(group, partitions=wanted),
            f"read offsets of group {group}",
        )
        return {key.partition: value.offset for key, value in found.items() if value.offset >= 0}


def _check(code: int, what: str) -> None:
    if code == 0:
        return
    kind = for_code(code)
    if kind.retriable:
        raise kind(what)
    raise EventLogError(f"Kafka refused to {what}: {kind.__name__} ({code})")


async def _describe(client: Any, name: str) -> KafkaTopic | None:
    """None where the topic does not exist."""
    # Only the controller's own view is never behind what it has just done.
    answer = await client._send_to_controller(TopicMetadata([name]))
    ((code, _, topic_id, _, partitions, _, _),) = answer.topics
    if for_code(code) is UnknownTopicOrPartitionError:
        return None
    _check(code, f"describe topic {name}")
    for partition in partitions:
        _check(partition[0], f"find the leader of {name}/{partition[1]}")
    return KafkaTopic(topic_id, len(partitions))


async def _brokers(client: Any) -> int:
    answer = await client._send_request(TopicMetadata([]))
    return len(answer.brokers)


async def _max_message_bytes(client: Any, name: str) -> int:
    resource = ConfigResource(ConfigResourceType.TOPIC, name, configs={"max.message.bytes": ""})
    (answer,) = await client.describe_configs([resource])
    for code, _, _, _, entries in answer.resources:
        _check(code, f"read the settings of topic {name}")
        return int(entries[0][1])
    raise EventLogError(f"Kafka told no settings of topic {name}")


def _settings(topic: Topic, copies: int) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(int(topic.retention.total_seconds() * 1000)),
        "retention.bytes": "-1",
        "max.message.bytes": str(topic.max_record_bytes + _OVERHEAD),
        "min.insync.replicas": "2" if copies >= 3 else "1",
        # Retention, replay by time and "when received" need the log's clock, not the sender's.
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "producer",
    }


async def _create(client: Any, topic: Topic, copies: int) -> None:
    wanted = NewTopic(topic.name, topic.partitions, copies, topic_configs=_settings(topic, copies))
    answer = await client.create_topics([wanted])
    for _, code, message in answer.topic_errors:
        if for_code(code) is not TopicAlreadyExistsError:
            _check(code, f"create topic {topic.name} ({message})")


async def _alter(client: Any, topic: Topic, copies: int) -> None:
    answer = await client._send_to_controller(AlterTopics({topic.name: _settings(topic, copies)}))
    for code, message, _, _ in answer.resources:
        _check(code, f"alter topic {topic.name} ({message})")
