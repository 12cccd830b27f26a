"""New records of a Kafka topic as they are appended: a consumer with partitions assigned, without a group."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import OffsetOutOfRangeError as KafkaOutOfRangeError

from core.eventlog.api import (
    Bounds,
    LogUnavailableError,
    OffsetOutOfRangeError,
    Record,
    TopicChangedError,
    TopicInfo,
)
from core.eventlog.kafka_admin import away
from core.eventlog.kafka_group import record_of
from core.log import Logger

_log = Logger(__name__)

_RECORDS: Final = 5_000
_WAIT_MS: Final = 1_000
_CHECK_SECONDS: Final = 5.0
"""How long a topic made anew may go unnoticed: a fetch names it, not its id."""
_AWAY_PAUSE: Final = 0.1


async def tail(
    consumer: Any,
    topic: str,
    positions: Mapping[int, int],
    *,
    describe: Callable[[str], Awaitable[TopicInfo]],
    bounds: Callable[[str], Awaitable[dict[int, Bounds]]],
) -> AsyncGenerator[list[Record], None]:
    """Implements `core.eventlog.api.EventLog.tail` with a started consumer of its own."""
    info = await describe(topic)
    if unknown := [partition for partition in positions if not 0 <= partition < info.partitions]:
        raise ValueError(f"topic {topic!r} has no partition {unknown[0]}")
    at = dict(positions)
    for partition, bound in (await bounds(topic)).items():
        if partition in at and not bound.low <= at[partition] <= bound.high:
            raise OffsetOutOfRangeError(topic, partition, at[partition], bound)
    consumer.assign([KafkaPartition(topic, partition) for partition in at])
    _seek(consumer, topic, at)
    checked, is_away = time.monotonic(), False
    while True:
        try:
            if time.monotonic() - checked > _CHECK_SECONDS:
                await _check_id(topic, info.id, describe)
                checked = time.monotonic()
            found = await consumer.getmany(timeout_ms=_WAIT_MS, max_records=_RECORDS)
        except KafkaOutOfRangeError:
            await _refuse(topic, at, bounds)
            _seek(consumer, topic, at)
            continue
        except Exception as error:
            if not isinstance(error, LogUnavailableError) and not away(error):
                raise
            if not is_away:
                _log.warn("Kafka away, the tail waits", topic=topic, reason=repr(error))
            is_away = True
            await asyncio.sleep(_AWAY_PAUSE)
            continue
        is_away = False
        if batch := [
            record_of(message) for messages in found.values() for message in messages if _is_next(message, at)
        ]:
            yield batch


def _is_next(message: Any, at: dict[int, int]) -> bool:
    """Whether the message stands at its partition's position, which is moved on.

    Raises:
        TopicChangedError: it stands behind it.
    """
    position = at[message.partition]
    if message.offset > position:
        raise TopicChangedError(f"{message.topic}/{message.partition} has no record {position} any more")
    if message.offset == position:
        at[message.partition] = position + 1
    return bool(message.offset == position)


async def _check_id(topic: str, known: str, describe: Callable[[str], Awaitable[TopicInfo]]) -> None:
    if (await describe(topic)).id != known:
        raise TopicChangedError(f"topic {topic!r} was made anew; ask for its id again")


def _seek(consumer: Any, topic: str, at: Mapping[int, int]) -> None:
    for partition, offset in at.items():
        consumer.seek(KafkaPartition(topic, partition), offset)


async def _refuse(
    topic: str, at: Mapping[int, int], bounds: Callable[[str], Awaitable[dict[int, Bounds]]]
) -> None:
    """Raises: OffsetOutOfRangeError where a position is outside of what the topic holds now."""
    try:
        found = await bounds(topic)
    except LogUnavailableError:
        await asyncio.sleep(_AWAY_PAUSE)
        return
    for partition, offset in at.items():
        bound = found.get(partition)
        if bound is not None and not bound.low <= offset <= bound.high:
            raise OffsetOutOfRangeError(topic, partition, offset, bound)
