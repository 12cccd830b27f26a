"""Whole slices of a topic for assets: synchronous, in large batches, without a group.

On Kafka by confluent-kafka, whose fetching costs half the CPU of aiokafka's; services never import
this module. A slice names the topic's id: a topic made anew is an error, never other records.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from core.eventlog import open_eventlog
from core.eventlog.api import (
    Bounds,
    EventLog,
    LogUnavailableError,
    OffsetOutOfRangeError,
    Record,
    Slice,
    TopicChangedError,
)
from core.settings import DatabaseSettings, EventLogSettings

BATCH_RECORDS: Final = 10_000
IDLE_SECONDS: Final = 30.0
"""Without a single record for so long, the log counts as away."""


def read_slice(
    settings: EventLogSettings,
    database: DatabaseSettings,
    piece: Slice,
    *,
    headers: bool = True,
    ends: dict[int, int] | None = None,
) -> Iterator[list[Record]]:
    """Exactly the records of the slice, in order within each partition, in batches of up to 10,000.

    Not for use under a running event loop: give it a thread of its own there. Without `headers` a
    record's may be left out where that saves work (a third of it on Kafka). `ends` is given the next offset
    of each partition of the log, as it was when the first batch was asked for.

    Raises:
        TopicChangedError: the topic's id is not the slice's (any more).
        OffsetOutOfRangeError: the slice was purged, expired, or is not there yet.
        UnknownTopicError, LogUnavailableError.
    """
    with asyncio.Runner() as runner:
        log = open_eventlog(settings, database)
        runner.run(log.__aenter__())
        try:
            bounds = runner.run(_check(log, piece))
            if ends is not None:
                ends.update({partition: each.high for partition, each in bounds.items()})
            if settings.eventlog_url.startswith("kafka://"):
                batches = _read_kafka(settings, piece, headers)
            else:
                batches = _read_log(runner, log, piece)
            while batch := _next(batches):
                yield batch
            runner.run(_check_id(log, piece))
        finally:
            runner.run(log.__aexit__(None, None, None))


def _next(batches: Iterator[list[Record]]) -> list[Record]:
    """The next batch, made without the garbage collector: ten thousand objects would wake it for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return next(batches, [])
    finally:
        if was_on:
            gc.enable()


def _read_log(runner: asyncio.Runner, log: EventLog, piece: Slice) -> Iterator[list[Record]]:
    async def following(batches: AsyncIterator[list[Record]]) -> list[Record]:
        return await anext(batches, [])

    for partition, (start, end) in sorted(piece.ranges.items()):
        batches = log.read(piece.topic, partition, start, end)
        while batch := runner.run(following(batches)):
            yield batch


async def _check_id(log: EventLog, piece: Slice) -> None:
    found = await log.topic(piece.topic)
    if found.id != piece.topic_id:
        raise TopicChangedError(
            f"topic {piece.topic!r} has id {found.id}, the slice means {piece.topic_id}: it was made anew"
        )


async def _check(log: EventLog, piece: Slice) -> dict[int, Bounds]:
    await _check_id(log, piece)
    bounds = await log.bounds(piece.topic)
    for partition, (start, end) in piece.ranges.items():
        if partition not in bounds or start > end:
            raise ValueError(f"{piece.topic}/{partition}: [{start}, {end}) is no range of it")
        for offset in (start, end):
            if not bounds[partition].low <= offset <= bounds[partition].high:
                raise OffsetOutOfRangeError(piece.topic, partition, offset, bounds[partition])
    return bounds


def _read_kafka(settings: EventLogSettings, piece: Slice, headers: bool) -> Iterator[list[Record]]:
    # Imported here: 15 MB that only the reading of slices needs.
    from confluent_kafka import Consumer, TopicPartition  # noqa: PLC0415

    positions = {partition: start for partition, (start, end) in piece.ranges.items() if start < end}
    consumer = Consumer(
        {
            "bootstrap.servers": settings.eventlog_url.removeprefix("kafka://").rstrip("/"),
            "group.id": "headrace-slices",  # demanded by the client, never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            # The default of 1000 ms makes a bulk read 2.4 times slower.
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    convert = _with_headers if headers else _without_headers
    try:
        consumer.assign(
            [TopicPartition(piece.topic, partition, offset) for partition, offset in positions.items()]
        )
        left = piece.records
        deadline = time.monotonic() + IDLE_SECONDS
        while left:
            messages: list[Any] = consumer.consume(min(BATCH_RECORDS, left), timeout=0.2)
            for message in messages:
                if message.error() is not None:
                    _raise_unless_passing(message.error(), piece, positions)
            records = _due(convert(piece.topic, messages), piece, positions)
            for partition, position in positions.items():
                if position == piece.ranges[partition][1]:
                    consumer.pause([TopicPartition(piece.topic, partition)])
            left -= len(records)
            if records:
                deadline = time.monotonic() + IDLE_SECONDS
                yield records
            elif time.monotonic() >= deadline:
                raise LogUnavailableError(
                    f"Kafka gave no record of {piece.topic} for {IDLE_SECONDS:.0f} s at {positions}; "
                    "see `headrace status`"
                )
    finally:
        consumer.close()


def _with_headers(topic: str, messages: list[Any]) -> list[Record]:
    return [
        Record(
            topic,
            m.partition(),
            m.offset(),
            m.key() or b"",
            m.value() or b"",
            m.timestamp()[1],
            tuple(m.headers() or ()),
        )
        for m in messages
        if m.error() is None
    ]


def _without_headers(topic: str, messages: list[Any]) -> list[Record]:
    return [
        Record(topic, m.partition(), m.offset(), m.key() or b"", m.value() or b"", m.timestamp()[1])
        for m in messages
        if m.error() is None
    ]


def _due(records: list[Record], piece: Slice, positions: dict[int, int]) -> list[Record]:
    """The records that belong to the slice; moves `positions` on.

    Raises:
        TopicChangedError: where one is missing.
    """
    due: list[Record] = []
    for partition, run in groupby(records, attrgetter("partition")):
        start, end = positions[partition], piece.ranges[partition][1]
        wanted = [record for record in run if record.offset < end]
        if not wanted:
            continue
        if wanted[0].offset != start or wanted[-1].offset - start + 1 != len(wanted):
            raise TopicChangedError(
                f"{piece.topic}/{partition}: [{wanted[0].offset}, {wanted[-1].offset}] came where {start} was due"
            )
        positions[partition] = start + len(wanted)
        due += wanted
    return due


def _raise_unless_passing(error: Any, piece: Slice, positions: dict[int, int]) -> None:
    from confluent_kafka import KafkaError  # noqa: PLC0415

    if error.code() in (
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError.UNKNOWN_TOPIC_ID,
    ):
        raise TopicChangedError(
            f"{piece.topic} was purged or made anew while it was read at {positions}: {error.str()}"
        )
    if error.fatal():
        raise LogUnavailableError(f"reading {piece.topic} failed: {error.str()}")
