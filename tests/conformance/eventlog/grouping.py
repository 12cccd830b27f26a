"""What every event log keeps for consumer groups: sharing, resuming, handing over, fencing."""

import asyncio
import signal
import uuid

import pytest

from core.eventlog.api import EventLog, GroupConsumer, OffsetOutOfRangeError, Record
from core.topology import Topic
from tests.conformance.eventlog.support import (
    Backend,
    member,
    new_topic,
    next_offsets,
    numbered,
    numbers,
    take,
    until,
)


async def _filled(log: EventLog, count: int, *, partitions: int = 3) -> tuple[Topic, str]:
    topic = new_topic(partitions=partitions)
    await log.ensure_topics([topic])
    if count:
        await log.append(numbered(topic, count))
    return topic, f"group-{uuid.uuid4().hex}"


async def _joined(log: EventLog, topic: Topic, group: str) -> GroupConsumer:
    consumer = log.consumer([topic.name], group)
    await consumer.start()
    return consumer


def _keys(topic: Topic) -> frozenset[tuple[str, int]]:
    return frozenset((topic.name, partition) for partition in range(topic.partitions))


class Grouping:
    async def test_a_group_resumes_where_it_committed(self, log: EventLog) -> None:
        topic, group = await _filled(log, 60)
        first = await _joined(log, topic, group)
        done = await take(first, 25)
        assert await first.commit(next_offsets(done)) == frozenset()
        await first.poll(20, 0.2)  # read, not committed: comes again
        await first.close()
        assert await log.committed(group, topic.name) == {
            p: offset for (_, p), offset in next_offsets(done).items()
        }
        second = await _joined(log, topic, group)
        rest = await take(second, 35)
        assert sorted(numbers(done) + numbers(rest)) == list(range(60))
        await second.close()

    async def test_groups_do_not_disturb_each_other(self, log: EventLog) -> None:
        topic, group = await _filled(log, 30)
        for name in (group, group + "-other"):
            consumer = await _joined(log, topic, name)
            records = await take(consumer, 30)
            assert sorted(numbers(records)) == list(range(30))
            await consumer.commit(next_offsets(records))
            await consumer.close()

    async def test_a_group_that_starts_at_the_end_misses_nothing_after_it(self, log: EventLog) -> None:
        topic, group = await _filled(log, 30, partitions=1)
        first = log.consumer([topic.name], group, from_start=False)
        await first.start()
        assert await first.poll(100, 0.3) == []
        await until(lambda: first.assignment() == _keys(topic), polling=[first])
        await first.close()  # before any commit of its own
        await log.append(numbered(topic, 5, first=30))
        second = log.consumer([topic.name], group, from_start=False)
        await second.start()
        assert numbers(await take(second, 5)) == [30, 31, 32, 33, 34]
        await second.close()

    async def test_a_waiting_poll_gets_what_is_appended(self, log: EventLog) -> None:
        topic, group = await _filled(log, 0, partitions=1)
        consumer = await _joined(log, topic, group)
        await until(lambda: consumer.assignment() == _keys(topic), polling=[consumer])
        await log.append(numbered(topic, 1))  # a producer takes its time to start
        assert numbers(await take(consumer, 1)) == [0]
        # Shorter than the pause after which a reader asks without being woken.
        waiting = asyncio.create_task(consumer.poll(10, 4))
        await asyncio.sleep(0.2)
        await log.append(numbered(topic, 1, first=1))
        assert numbers(await waiting) == [1]
        await consumer.close()

    async def test_two_members_share_the_partitions(self, log: EventLog, backend: Backend) -> None:
        topic, group = await _filled(log, 0, partitions=4)
        async with backend.open() as other:
            first, second = await _joined(log, topic, group), await _joined(other, topic, group)
            members = [first, second]
            await until(lambda: all(len(c.assignment()) == 2 for c in members), polling=members)
            assert first.assignment() | second.assignment() == _keys(topic)
            await log.append(numbered(topic, 200))
            found = {0: await first.poll(1000, 1), 1: await second.poll(1000, 1)}
            while sum(map(len, found.values())) < 200:
                for index, consumer in enumerate(members):
                    found[index] += await consumer.poll(1000, 0.2)
            for index, consumer in enumerate(members):
                assert {(r.topic, r.partition) for r in found[index]} <= consumer.assignment()
            assert sorted(numbers(found[0] + found[1])) == list(range(200))
            await first.commit(next_offsets(found[0]))
            await first.close()
            await until(lambda: second.assignment() == _keys(topic), polling=[second])
            await second.close()

    async def test_handing_over_commits_what_is_done(self, log: EventLog, backend: Backend) -> None:
        topic, group = await _filled(log, 100, partitions=2)
        taken: list[int] = []
        position: dict[tuple[str, int], int] = {}

        async def hand_over(revoked: frozenset[tuple[str, int]]) -> None:
            await first.commit({key: offset for key, offset in position.items() if key in revoked})

        first = log.consumer([topic.name], group, on_revoked=hand_over)
        await first.start()
        records = await take(first, 100)
        taken += numbers(records)
        position |= next_offsets(records)
        async with backend.open() as other:
            second = await _joined(other, topic, group)
            again = await until(
                lambda: len(first.assignment()) == len(second.assignment()) == 1, polling=[first, second]
            )
            again += await second.poll(100, 0.5)
            assert again == []
            await second.close()
        await first.close()

    async def test_a_killed_member_is_replaced_and_what_it_did_not_commit_comes_again(
        self, log: EventLog, backend: Backend
    ) -> None:
        topic, group = await _filled(log, 90)
        async with member(backend, topic, group) as victim:
            took = (await victim.ask(take=50))["took"]
            done = [row for row in took if row[0] == took[0][0]]
            assert await victim.ask(commit=[[done[0][0], done[-1][1] + 1]]) == {"fenced": []}
            victim.send(signal.SIGKILL)
            heir = await _joined(log, topic, group)
            rest = await take(heir, 90 - len(done))
            assert sorted(numbers(rest) + [int(row[2]) for row in done]) == list(range(90))
            await heir.close()

    async def test_the_commit_of_a_member_that_lost_its_partition_is_fenced(
        self, log: EventLog, backend: Backend
    ) -> None:
        topic, group = await _filled(log, 30, partitions=1)
        async with member(backend, topic, group) as frozen:
            assert len((await frozen.ask(take=10))["took"]) == 10
            frozen.send(signal.SIGSTOP)
            heir = await _joined(log, topic, group)
            records = await take(heir, 20)
            assert await heir.commit(next_offsets(records)) == frozenset()
            frozen.send(signal.SIGCONT)
            assert await frozen.ask(commit=[[0, 10]]) == {"fenced": [0]}
            assert await log.committed(group, topic.name) == {0: 20}
            await heir.close()

    async def test_a_member_closes_while_news_of_the_group_come_in(self, log: EventLog) -> None:
        topic, group = await _filled(log, 0)
        for _ in range(3):
            consumer = await _joined(log, topic, group)
            await consumer.poll(1, 0.05)
            # A fenced commit wakes the member's heart in the turn of the loop in which it is cancelled.
            assert await consumer.commit({("test.of-nobody", 0): 1}) == {("test.of-nobody", 0)}
            await consumer.close()

    async def test_paused_partitions_are_not_read_until_resumed(self, log: EventLog) -> None:
        topic, group = await _filled(log, 0, partitions=2)
        consumer = await _joined(log, topic, group)
        await until(lambda: consumer.assignment() == _keys(topic), polling=[consumer])
        consumer.pause(frozenset({(topic.name, 0)}))
        await log.append(numbered(topic, 40))
        high = {partition: bounds.high for partition, bounds in (await log.bounds(topic.name)).items()}
        records = await take(consumer, high[1]) + await consumer.poll(100, 0.3)
        assert {record.partition for record in records} == {1}
        consumer.resume(frozenset({(topic.name, 0)}))
        assert {record.partition for record in await take(consumer, high[0])} == {0}
        await consumer.close()

    async def test_seek_reads_again(self, log: EventLog) -> None:
        topic, group = await _filled(log, 20, partitions=1)
        consumer = await _joined(log, topic, group)
        await take(consumer, 20)
        await consumer.seek({(topic.name, 0): 15})
        assert numbers(await take(consumer, 5)) == [15, 16, 17, 18, 19]
        with pytest.raises(ValueError, match="-1"):
            await consumer.seek({(topic.name, 0): -1})
        with pytest.raises(ValueError, match="-1"):
            await consumer.commit({(topic.name, 0): -1})
        await consumer.close()

    async def test_a_position_that_was_purged_is_an_error_until_the_reader_decides(
        self, log: EventLog
    ) -> None:
        topic, group = await _filled(log, 20, partitions=1)
        first = await _joined(log, topic, group)
        await first.commit(next_offsets(await take(first, 5)))
        await first.close()
        await log.purge(topic.name, {0: 12})
        second = await _joined(log, topic, group)
        with pytest.raises(OffsetOutOfRangeError) as refused:
            await take(second, 1)
        assert (refused.value.offset, refused.value.bounds.low) == (5, 12)
        await second.seek({(topic.name, 0): refused.value.bounds.low})
        assert numbers(await take(second, 8)) == list(range(12, 20))
        await second.close()

    async def test_a_purged_position_does_not_cost_the_records_of_other_partitions(
        self, log: EventLog
    ) -> None:
        topic, group = await _filled(log, 0, partitions=2)
        first = await _joined(log, topic, group)
        await until(lambda: first.assignment() == _keys(topic), polling=[first])
        await first.commit({(topic.name, 0): 1, (topic.name, 1): 0})
        await first.close()
        await log.append(numbered(topic, 40))
        high = {partition: bounds.high for partition, bounds in (await log.bounds(topic.name)).items()}
        await log.purge(topic.name, {0: 5})
        second = await _joined(log, topic, group)
        found: list[Record] = []
        refused: set[tuple[int, int]] = set()
        while len(found) < high[1] or not refused:
            try:
                found += await second.poll(100, 1)
            except OffsetOutOfRangeError as error:
                refused.add((error.partition, error.offset))
        assert refused == {(0, 1)}
        assert [(record.partition, record.offset) for record in found] == [(1, n) for n in range(high[1])]
        await second.close()
