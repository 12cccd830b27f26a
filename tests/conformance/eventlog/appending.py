"""What every event log keeps when records are appended."""

import asyncio

import pytest

from core.eventlog.api import Bounds, EventLog, NewRecord, Position, RecordTooLargeError, UnknownTopicError
from core.eventlog.partitioner import partition_for
from tests.conformance.eventlog.support import Backend, new_topic, numbered, numbers, read_all


class Appending:
    async def test_positions_name_the_records_as_they_are_read(self, log: EventLog) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        records = numbered(topic, 300) + numbered(topic, 7, first=300)
        positions = await log.append(records[:300]) + await log.append(records[300:])
        stored = {
            Position(r.topic, r.partition, r.offset): NewRecord(r.topic, r.key, r.value)
            for found in (await read_all(log, topic)).values()
            for r in found
        }
        assert [stored[position] for position in positions] == records
        assert len(stored) == len(records)

    async def test_records_of_a_key_stay_in_order_in_the_partition_of_the_key(self, log: EventLog) -> None:
        topic = new_topic(partitions=4)
        await log.ensure_topics([topic])
        for first in range(0, 200, 50):
            await log.append(numbered(topic, 50, first=first))
        found = await read_all(log, topic)
        for n in range(10):
            key = b"key-%d" % n
            partition = partition_for(key, 4)
            assert numbers(r for r in found[partition] if r.key == key) == list(range(n, 200, 10))

    async def test_concurrent_producers_leave_dense_offsets_and_their_own_order(
        self, log: EventLog, backend: Backend
    ) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])

        async def produce(producer: EventLog, name: bytes) -> list[Position]:
            positions: list[Position] = []
            for batch in range(10):
                positions += await producer.append(
                    [
                        NewRecord(topic.name, b"%s-%d" % (name, n % 5), b"%d" % (batch * 30 + n))
                        for n in range(30)
                    ]
                )
            return positions

        async with backend.open() as other:
            written = await asyncio.gather(
                *(produce(log if n % 2 else other, b"producer-%d" % n) for n in range(6))
            )
        positions = [position for some in written for position in some]
        assert len(set(positions)) == len(positions) == 6 * 300
        found = await read_all(log, topic)
        for partition, records in found.items():
            assert [r.offset for r in records] == list(range(len(records)))
            assert len(records) == sum(position.partition == partition for position in positions)
            by_key: dict[bytes, list[int]] = {}
            for record in records:
                by_key.setdefault(record.key, []).append(int(record.value))
            assert all(values == sorted(values) for values in by_key.values())

    async def test_five_thousand_records_in_one_call(self, log: EventLog) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        records = numbered(topic, 5000, keys=100)
        positions = await log.append(records)
        found = await read_all(log, topic)
        assert [int(found[p.partition][p.offset].value) for p in positions] == list(range(5000))
        assert sum(map(len, found.values())) == 5000

    async def test_nothing_to_append(self, log: EventLog) -> None:
        assert await log.append([]) == []

    async def test_several_topics_in_one_call(self, log: EventLog) -> None:
        first, second = new_topic(partitions=1), new_topic(partitions=1)
        await log.ensure_topics([first, second])
        records = [NewRecord((first, second)[n % 2].name, b"k", b"%d" % n) for n in range(10)]
        positions = await log.append(records)
        assert positions == [Position(record.topic, 0, n // 2) for n, record in enumerate(records)]
        assert numbers((await read_all(log, first))[0]) == [0, 2, 4, 6, 8]
        assert numbers((await read_all(log, second))[0]) == [1, 3, 5, 7, 9]

    async def test_keys_values_and_headers_are_any_bytes(self, log: EventLog) -> None:
        topic = new_topic(partitions=2)
        await log.ensure_topics([topic])
        headers = (("traceparent", b"00-ab-cd-01"), ("traceparent", b""), ("ключ", bytes(range(256))))
        records = [
            NewRecord(topic.name, b"", b"no key", headers),
            NewRecord(topic.name, b"", b""),
            NewRecord(topic.name, bytes(range(256)), bytes(range(256)) * 100, headers),
        ]
        positions = await log.append(records)
        assert positions[0].partition == positions[1].partition == partition_for(b"", 2)
        found = await read_all(log, topic)
        assert [
            NewRecord(r.topic, r.key, r.value, r.headers)
            for r in (found[p.partition][p.offset] for p in positions)
        ] == records

    async def test_a_record_above_the_limit_leaves_nothing_of_its_batch(self, log: EventLog) -> None:
        topic = new_topic(partitions=1, max_record_bytes=5000)
        await log.ensure_topics([topic])
        largest = NewRecord(topic.name, b"key", b"x" * 4990, (("name", b"val"),))
        assert await log.append([largest]) == [Position(topic.name, 0, 0)]
        too_large = NewRecord(topic.name, b"key", b"x" * 4991, (("name", b"val"),))
        with pytest.raises(RecordTooLargeError, match="5001 bytes"):
            await log.append([largest, too_large])
        assert await log.bounds(topic.name) == {0: Bounds(0, 1)}

    async def test_an_incompressible_record_of_the_largest_size_goes_through(self, log: EventLog) -> None:
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        noise = bytes((n * 2654435761 >> 13) & 0xFF for n in range(1_000_000 - 1))
        await log.append([NewRecord(topic.name, b"k", noise)])
        assert (await read_all(log, topic))[0][0].value == noise

    async def test_an_unknown_topic_is_an_error_and_is_not_made(self, log: EventLog) -> None:
        known, unknown = new_topic(), new_topic()
        await log.ensure_topics([known])
        with pytest.raises(UnknownTopicError, match=unknown.name):
            await log.append([*numbered(known, 5), *numbered(unknown, 1)])
        assert {bounds.high for bounds in (await log.bounds(known.name)).values()} == {0}
        for refused in (
            log.topic(unknown.name),
            log.bounds(unknown.name),
            log.offsets_for_time(unknown.name, 0),
            log.purge(unknown.name, {0: 0}),
            log.delete_topic(unknown.name),
            anext(aiter(log.read(unknown.name, 0, 0, 0))),
            log.consumer([known.name, unknown.name], "group").start(),
        ):
            with pytest.raises(UnknownTopicError, match=unknown.name):
                await refused
