"""What every event log keeps for readers that follow it without a group."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from core.eventlog.api import Bounds, EventLog, OffsetOutOfRangeError, Record, UnknownTopicError
from tests.conformance.eventlog.support import Backend, new_topic, numbered, numbers

Batches = AsyncGenerator[list[Record], None]


async def come(batches: Batches, count: int) -> list[Record]:
    """The next `count` records of a tail.

    Raises:
        TimeoutError: where they do not come within half a minute.
    """
    found: list[Record] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += await anext(batches)
    assert len(found) == count
    return found


def dense(records: list[Record], starts: dict[int, int]) -> None:
    """Each partition's records are those from its start on, in order, none left out, none twice."""
    for partition, start in starts.items():
        offsets = [record.offset for record in records if record.partition == partition]
        assert offsets == list(range(start, start + len(offsets)))


class Tailing:
    async def test_a_tail_gives_what_is_there_and_then_what_comes(
        self, log: EventLog, backend: Backend
    ) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 3_000))
        starts = {0: 5, 1: 0, 2: (await log.bounds(topic.name))[2].high}
        there = sum(b.high - starts[p] for p, b in (await log.bounds(topic.name)).items())
        async with aclosing(log.tail(topic.name, starts)) as batches, backend.open() as writer:
            seen = await come(batches, there)
            for first in range(3_000, 3_200, 20):
                positions = await writer.append(numbered(topic, 20, first=first))
                new = await come(batches, 20)
                assert {(r.partition, r.offset, r.value) for r in new} == {
                    (place.partition, place.offset, b"%d" % (first + n)) for n, place in enumerate(positions)
                }
                seen += new
        dense(seen, starts)

    async def test_only_the_partitions_asked_for(self, log: EventLog) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        async with aclosing(log.tail(topic.name, {1: 0})) as batches:
            positions = await log.append(numbered(topic, 90))
            wanted = [n for n, position in enumerate(positions) if position.partition == 1]
            assert numbers(await come(batches, len(wanted))) == wanted

    async def test_a_purged_position_is_refused_and_never_answered_by_later_records(
        self, log: EventLog
    ) -> None:
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 50))
        await log.purge(topic.name, {0: 20})
        for position in (19, 51):
            async with aclosing(log.tail(topic.name, {0: position})) as batches:
                with pytest.raises(OffsetOutOfRangeError) as refused:
                    await come(batches, 1)
                assert (refused.value.offset, refused.value.bounds) == (position, Bounds(20, 50))
        async with aclosing(log.tail(topic.name, {0: 20})) as batches:
            assert numbers(await come(batches, 30)) == list(range(20, 50))

    async def test_a_topic_or_partition_that_is_not_there_is_an_error(self, log: EventLog) -> None:
        async with aclosing(log.tail(new_topic().name, {0: 0})) as batches:
            with pytest.raises(UnknownTopicError):
                await anext(batches)
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        async with aclosing(log.tail(topic.name, {0: 0, 1: 0})) as batches:
            with pytest.raises(ValueError, match="partition"):
                await anext(batches)

    async def test_tails_do_not_take_from_each_other(self, log: EventLog) -> None:
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        async with (
            aclosing(log.tail(topic.name, {0: 0})) as one,
            aclosing(log.tail(topic.name, {0: 0})) as other,
        ):
            await log.append(numbered(topic, 5))
            assert numbers(await come(one, 5)) == numbers(await come(other, 5)) == list(range(5))
