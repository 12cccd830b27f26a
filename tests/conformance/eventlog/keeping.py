"""What every event log keeps of its records: replay, purge, identity; and bulk reads of the same."""

import asyncio

import pytest

from core.eventlog.api import (
    Bounds,
    EventLog,
    OffsetOutOfRangeError,
    Record,
    Slice,
    TopicChangedError,
    UnknownTopicError,
)
from core.eventlog.bulk import read_slice
from core.topology import Topic
from tests.conformance.eventlog.support import (
    Backend,
    new_topic,
    next_offsets,
    numbered,
    numbers,
    read,
    read_all,
    take,
)


async def _one_partition(log: EventLog, count: int) -> Topic:
    topic = new_topic(partitions=1)
    await log.ensure_topics([topic])
    await log.append(numbered(topic, count))
    return topic


class Keeping:
    async def test_any_range_can_be_read_again(self, log: EventLog) -> None:
        topic = await _one_partition(log, 50)
        assert numbers(await read(log, topic, 0, Bounds(20, 33))) == list(range(20, 33))
        assert numbers(await read(log, topic, 0, Bounds(0, 50))) == list(range(50))
        assert await read(log, topic, 0, Bounds(20, 20)) == []
        assert await read(log, topic, 0, Bounds(50, 50)) == []

    async def test_reading_outside_the_bounds_is_an_error(self, log: EventLog) -> None:
        topic = await _one_partition(log, 5)
        with pytest.raises(OffsetOutOfRangeError) as refused:
            await read(log, topic, 0, Bounds(2, 6))
        assert (refused.value.offset, refused.value.bounds) == (6, Bounds(0, 5))
        with pytest.raises(ValueError, match="no partition 1"):
            await read(log, topic, 1, Bounds(0, 1))

    async def test_replay_from_a_time(self, log: EventLog) -> None:
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        times = []
        for first in range(0, 40, 10):
            await log.append(numbered(topic, 10, first=first))
            times.append((await read(log, topic, 0, Bounds(first, first + 1)))[0].timestamp_ms)
            await asyncio.sleep(0.005)
        assert times == sorted(set(times))
        for index, time in enumerate(times):
            assert await log.offsets_for_time(topic.name, time) == {0: index * 10}
            assert await log.offsets_for_time(topic.name, time + 1) == {0: index * 10 + 10}
        assert await log.offsets_for_time(topic.name, 0) == {0: 0}

    async def test_purge_deletes_below_and_returns_the_low_watermark(self, log: EventLog) -> None:
        topic = new_topic(partitions=2)
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 100))
        before = await read_all(log, topic)
        high = {partition: len(records) for partition, records in before.items()}
        assert await log.purge(topic.name, {0: 7}) == {0: 7}
        assert await log.bounds(topic.name) == {0: Bounds(7, high[0]), 1: Bounds(0, high[1])}
        with pytest.raises(OffsetOutOfRangeError) as refused:
            await read(log, topic, 0, Bounds(6, 9))
        assert refused.value.bounds.low == 7
        assert await read_all(log, topic) == {0: before[0][7:], 1: before[1]}
        assert await log.purge(topic.name, {0: 3, 1: 0}) == {0: 7, 1: 0}

    async def test_purging_everything_keeps_the_count(self, log: EventLog) -> None:
        topic = await _one_partition(log, 30)
        assert await log.purge(topic.name, {0: 30}) == {0: 30}
        (position,) = await log.append(numbered(topic, 1))
        assert position.offset == 30
        assert await log.bounds(topic.name) == {0: Bounds(30, 31)}
        assert await log.offsets_for_time(topic.name, 0) == {0: 30}

    async def test_a_purge_that_is_no_offset_of_the_topic_deletes_nothing(self, log: EventLog) -> None:
        topic = new_topic(partitions=2)
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 40))
        before = await log.bounds(topic.name)
        with pytest.raises(ValueError, match="-1"):
            await log.purge(topic.name, {0: 3, 1: -1})
        with pytest.raises(OffsetOutOfRangeError):
            await log.purge(topic.name, {0: 3, 1: before[1].high + 1})
        with pytest.raises(ValueError, match="no partition 2"):
            await log.purge(topic.name, {0: 3, 2: 1})
        assert await log.bounds(topic.name) == before

    async def test_a_topic_made_anew_is_another_topic(self, log: EventLog, backend: Backend) -> None:
        topic = await _one_partition(log, 10)
        old = await log.topic(topic.name)
        consumer = log.consumer([topic.name], f"group-{topic.name}")
        await consumer.start()
        await consumer.commit(next_offsets(await take(consumer, 10)))
        await consumer.close()
        assert await log.committed(f"group-{topic.name}", topic.name) == {0: 10}
        await log.delete_topic(topic.name)
        with pytest.raises(UnknownTopicError):
            await log.topic(topic.name)
        await log.ensure_topics([topic])
        new = await log.topic(topic.name)
        assert (new.name, new.partitions) == (old.name, old.partitions)
        assert new.id != old.id
        assert await log.committed(f"group-{topic.name}", topic.name) == {}
        (position,) = await log.append(numbered(topic, 1, first=77))
        assert position.offset == 0
        assert numbers(await read(log, topic, 0, Bounds(0, 1))) == [77]
        with pytest.raises(TopicChangedError, match=old.id):
            await asyncio.to_thread(_bulk, backend, Slice(topic.name, old.id, {0: (0, 1)}))

    async def test_provisioning_again_changes_limits_and_keeps_records(self, log: EventLog) -> None:
        topic = new_topic(partitions=1, max_record_bytes=100)
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 3))
        before = await log.topic(topic.name)
        wider = Topic(topic.name, 1, topic.retention * 2, "key", "bytes", max_record_bytes=50_000)
        await log.ensure_topics([wider])
        large = numbered(topic, 1)[0]
        await log.append([type(large)(large.topic, large.key, b"x" * 40_000)])
        assert await log.topic(topic.name) == before
        assert await log.bounds(topic.name) == {0: Bounds(0, 4)}
        with pytest.raises(TopicChangedError, match="1 partitions, not 2"):
            await log.ensure_topics([Topic(topic.name, 2, topic.retention, "key", "bytes")])

    async def test_a_bulk_read_gives_what_a_read_gives(self, log: EventLog, backend: Backend) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        headers = (("traceparent", b"00-ab-cd-01"),)
        await log.append(
            [type(r)(r.topic, r.key, r.value, headers) for r in numbered(topic, 25_000, keys=50)]
        )
        found = await read_all(log, topic)
        ranges = {partition: (3, len(records) - 5) for partition, records in found.items()}
        info = await log.topic(topic.name)
        records = await asyncio.to_thread(_bulk, backend, Slice(topic.name, info.id, ranges))
        for partition, (start, end) in ranges.items():
            assert [r for r in records if r.partition == partition] == found[partition][start:end]
        assert len(records) == Slice(topic.name, info.id, ranges).records
        slim = await asyncio.to_thread(
            _bulk, backend, Slice(topic.name, info.id, {1: ranges[1]}), headers=False
        )
        assert [(r.offset, r.value) for r in slim] == [
            (r.offset, r.value) for r in records if r.partition == 1
        ]
        assert await asyncio.to_thread(_bulk, backend, Slice(topic.name, info.id, {0: (7, 7)})) == []

    async def test_a_bulk_read_outside_the_bounds_is_an_error(self, log: EventLog, backend: Backend) -> None:
        topic = await _one_partition(log, 10)
        await log.purge(topic.name, {0: 4})
        info = await log.topic(topic.name)
        for start, end in ((3, 8), (5, 11)):
            with pytest.raises(OffsetOutOfRangeError):
                await asyncio.to_thread(_bulk, backend, Slice(topic.name, info.id, {0: (start, end)}))


def _bulk(backend: Backend, piece: Slice, *, headers: bool = True) -> list[Record]:
    batches = read_slice(backend.eventlog, backend.database, piece, headers=headers)
    return [record for batch in batches for record in batch]
