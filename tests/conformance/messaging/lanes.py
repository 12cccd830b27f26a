"""Lanes on an adapter: order per key, bounded, nothing skipped. Test modules subclass `LanesSuite`."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from core.eventlog.api import EventLog, NewRecord, Record
from core.ids import new_id
from core.messaging.lanes import Lanes
from core.messaging.watchdog import ConsumerStalledError, Watchdog, group_lag
from core.topology import TOPICS

KEYS = [f"key-{number}".encode() for number in range(12)]

HANGS = 120
"""Seconds after which what should have come is taken for lost."""


@asynccontextmanager
async def running(lanes: Lanes) -> AsyncIterator[Lanes]:
    task = asyncio.create_task(lanes.run())
    try:
        yield lanes
    finally:
        lanes.stop()
        await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - a state of the code under test, not an event
            await asyncio.sleep(0.01)


class LanesSuite:
    """Subclasses give the fixture `log`: a started event log."""

    @pytest.fixture
    async def topic(self, log: EventLog) -> AsyncIterator[str]:
        name = f"lanes.{new_id('t')}"
        await log.ensure_topics([replace(TOPICS["agent.events"], name=name, partitions=4)])
        yield name
        await log.delete_topic(name)

    async def fill(self, log: EventLog, topic: str, rounds: range) -> None:
        await log.append([NewRecord(topic, key, b"%d" % number) for number in rounds for key in KEYS])

    async def drained(self, log: EventLog, topic: str, group: str) -> None:
        """Wait until the group has committed everything."""
        async with asyncio.timeout(HANGS):
            while (await group_lag(log, topic, group)).records:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def test_order_per_key_and_each_once(self, log: EventLog, topic: str) -> None:
        seen: dict[bytes, list[int]] = defaultdict(list)
        at_work: list[bytes] = []
        twice: list[bytes] = []  # an assertion inside a handler would only be tried again
        together = 0

        async def handle(record: Record) -> None:
            nonlocal together
            twice.extend(key for key in at_work if key == record.key)
            at_work.append(record.key)
            together = max(together, len(at_work))
            await asyncio.sleep(0.001)
            at_work.remove(record.key)
            seen[record.key].append(int(record.value))

        await self.fill(log, topic, range(30))
        async with running(Lanes(log, [topic], "group", handle)):
            await until(lambda: sum(map(len, seen.values())) >= 30 * len(KEYS))
            await self.fill(log, topic, range(30, 40))
            await until(lambda: sum(map(len, seen.values())) >= 40 * len(KEYS))
        assert seen == {key: [*range(40)] for key in KEYS}
        assert twice == []
        assert together > 4
        assert (await group_lag(log, topic, "group")).records == 0

    async def test_a_stuck_key_holds_the_mark_not_the_others(self, log: EventLog, topic: str) -> None:
        release, done = asyncio.Event(), []

        async def handle(record: Record) -> None:
            if record.key == KEYS[0]:
                await release.wait()
            done.append((record.key, int(record.value)))

        await self.fill(log, topic, range(10))
        async with running(Lanes(log, [topic], "group", handle)) as lanes:
            await until(lambda: len(done) == 10 * (len(KEYS) - 1))
            await until(lambda: lanes.in_flight == 10)
            lag = await group_lag(log, topic, "group")
            assert lag.records >= 10
            assert lag.seconds > 0
            release.set()
            await self.drained(log, topic, "group")
        assert [value for key, value in done if key == KEYS[0]] == [*range(10)]

    async def test_what_is_in_flight_is_bounded(self, log: EventLog, topic: str) -> None:
        release, started = asyncio.Event(), 0

        async def handle(record: Record) -> None:
            nonlocal started
            started += 1
            await release.wait()

        await log.append([NewRecord(topic, b"%d" % number, b"") for number in range(240)])
        lanes = Lanes(log, [topic], "group", handle, in_flight=30, concurrency=5)
        async with running(lanes):
            await until(lambda: started == 5)
            await until(lambda: lanes.in_flight >= 30)
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert lanes.in_flight <= 31
            assert started == 5
            release.set()
            await self.drained(log, topic, "group")
        assert started == 240
        assert lanes.in_flight == 0

    async def test_a_failing_record_is_tried_again_in_its_place(self, log: EventLog, topic: str) -> None:
        seen: list[tuple[bytes, int]] = []
        failures = 0

        async def handle(record: Record) -> None:
            nonlocal failures
            if (record.key, record.value) == (KEYS[1], b"2") and failures < 3:
                failures += 1
                raise ConnectionError("not now")
            seen.append((record.key, int(record.value)))

        await self.fill(log, topic, range(5))
        async with running(Lanes(log, [topic], "group", handle)):
            await self.drained(log, topic, "group")
        assert failures == 3
        assert [value for key, value in seen if key == KEYS[1]] == [0, 1, 2, 3, 4]
        assert len(seen) == 5 * len(KEYS)

    async def test_a_hopeless_record_is_buried_and_its_key_goes_on(self, log: EventLog, topic: str) -> None:
        seen: list[tuple[bytes, int]] = []
        buried: list[tuple[bytes, int, str]] = []

        async def handle(record: Record) -> None:
            if (record.key, record.value) == (KEYS[1], b"2"):
                raise ValueError("never")
            seen.append((record.key, int(record.value)))

        async def bury(record: Record, error: Exception) -> None:
            buried.append((record.key, int(record.value), str(error)))

        await self.fill(log, topic, range(5))
        async with running(Lanes(log, [topic], "group", handle, attempts=2, bury=bury)):
            await self.drained(log, topic, "group")
        assert buried == [(KEYS[1], 2, "never")]
        assert [value for key, value in seen if key == KEYS[1]] == [0, 1, 3, 4]

    async def test_stopping_commits_what_is_done_and_leaves_the_rest(self, log: EventLog, topic: str) -> None:
        done: list[tuple[bytes, int]] = []

        def handler(limit: int) -> Callable[[Record], Awaitable[None]]:
            async def handle(record: Record) -> None:
                await asyncio.sleep(0.002)
                done.append((record.key, int(record.value)))
                if len(done) >= limit:
                    lanes.stop()

            return handle

        await self.fill(log, topic, range(20))
        for limit in (60, 150, 20 * len(KEYS)):
            lanes = Lanes(log, [topic], "group", handler(limit), concurrency=3, commit_seconds=3600)
            async with running(lanes):
                await until(lambda: len(done) >= limit)  # noqa: B023 - awaited in the same round
        for key in KEYS:
            values = [value for found, value in done if found == key]
            # Work that was done beyond the mark comes again; nothing is left out or out of order.
            assert sorted(set(values)) == [*range(20)]
            assert values[0] == 0
            assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(values))
        assert (await group_lag(log, topic, "group")).records == 0

    async def test_stopping_starts_nothing_more(self, log: EventLog, topic: str) -> None:
        release, started, finished = asyncio.Event(), 0, 0

        async def handle(record: Record) -> None:
            nonlocal started, finished
            started += 1
            await release.wait()
            finished += 1

        await log.append([NewRecord(topic, b"%d" % number, b"") for number in range(60)])
        lanes = Lanes(log, [topic], "group", handle, concurrency=5, commit_seconds=3600)
        async with running(lanes):
            await until(lambda: started == 5 and lanes.in_flight >= 20)
            lanes.stop()
            release.set()
        assert (started, finished) == (5, 5)
        # At most what ran is committed; only what lies at the front of its partition can be.
        assert 55 <= (await group_lag(log, topic, "group")).records <= 60

    async def test_members_share_and_hand_over(self, log: EventLog, topic: str) -> None:
        seen: dict[bytes, list[int]] = defaultdict(list)
        at_work: list[bytes] = []
        twice: list[bytes] = []
        workers: dict[str, set[int]] = defaultdict(set)

        def handler(name: str) -> Callable[[Record], Awaitable[None]]:
            async def handle(record: Record) -> None:
                twice.extend(key for key in at_work if key == record.key)
                at_work.append(record.key)
                await asyncio.sleep(0.002)
                at_work.remove(record.key)
                seen[record.key].append(int(record.value))
                workers[name].add(record.partition)

            return handle

        def high() -> int:
            return (
                min((max(values) for values in seen.values()), default=-1) if len(seen) == len(KEYS) else -1
            )

        # No clock commits here: what the second one starts from was handed over.
        first, second = (
            Lanes(log, [topic], "group", handler(name), commit_seconds=3600) for name in ("first", "second")
        )
        async with running(first):
            await self.fill(log, topic, range(20))
            await until(lambda: high() == 19)
            async with running(second):
                await until(lambda: second.watchdog.holding == 2)
                await self.fill(log, topic, range(20, 60))
                await until(lambda: high() == 59)
            await self.fill(log, topic, range(60, 80))
            await until(lambda: high() == 79)
        assert twice == []
        assert workers["second"]
        for values in seen.values():
            assert sorted(set(values)) == [*range(80)]
            assert len(values) == 80
            assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(values))
        assert (await group_lag(log, topic, "group")).records == 0

    async def test_what_waits_goes_with_its_partition(self, log: EventLog, topic: str) -> None:
        starts: list[tuple[str, int]] = []

        def handler(name: str) -> Callable[[Record], Awaitable[None]]:
            async def handle(record: Record) -> None:
                starts.append((name, record.partition))
                alone = all(name == "first" for name, _ in starts)
                await asyncio.sleep(0.05 if alone else 0.001)

            return handle

        await log.append([NewRecord(topic, b"%d" % number, b"") for number in range(900)])
        # The first one has it all in its lanes, and works for 45 s if nobody takes some of it: joining a
        # group of Kafka takes seconds.
        first = Lanes(log, [topic], "group", handler("first"), concurrency=1)
        second = Lanes(log, [topic], "group", handler("second"), concurrency=32)
        async with running(first):
            await until(lambda: first.in_flight >= 800)
            async with running(second):
                await until(lambda: len({partition for name, partition in starts if name == "second"}) == 2)
                await until(lambda: first.in_flight == 0)
                for partition in {partition for name, partition in starts if name == "second"}:
                    later = starts[starts.index(("second", partition)) :]
                    assert ("first", partition) not in later

    async def test_purged_records_are_passed_over_loudly(
        self, log: EventLog, topic: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[int] = []

        async def handle(record: Record) -> None:
            seen.append(int(record.value))

        await self.fill(log, topic, range(2))
        async with running(Lanes(log, [topic], "group", handle)):
            await self.drained(log, topic, "group")
        await self.fill(log, topic, range(2, 4))
        bounds = await log.bounds(topic)
        await log.purge(topic, {partition: bound.high for partition, bound in bounds.items()})
        await self.fill(log, topic, range(4, 6))
        async with running(Lanes(log, [topic], "group", handle)):
            await self.drained(log, topic, "group")
        assert set(seen) == {0, 1, 4, 5}
        assert len(seen) == 4 * len(KEYS)
        assert "records expired or were purged" in caplog.text

    async def test_the_watchdog_sees_who_does_not_consume(self, log: EventLog, topic: str) -> None:
        async def handle(record: Record) -> None:
            await asyncio.sleep(0)

        lanes = Lanes(log, [topic], "group", handle)
        async with running(lanes):
            await until(lambda: lanes.watchdog.holding == 4)
            await lanes.watchdog.check()
            assert lanes.watchdog.consuming

        dead = Watchdog(topic, "group", stalled_after=0)

        async def die() -> None:
            with dead.expected():
                dead.beat(())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await die()
        with pytest.raises(ConsumerStalledError, match="has read nothing"):
            await dead.check()
        idle = Watchdog(topic, "group", stalled_after=0)
        with idle.expected():
            pass
        await idle.check()
