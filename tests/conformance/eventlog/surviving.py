"""What every event log keeps when its server is killed under producers and consumers."""

import asyncio
import random
import subprocess
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from core.eventlog.api import (
    AppendUnknownError,
    EventLog,
    LogUnavailableError,
    NewRecord,
    Record,
)
from deploy.component import Component
from tests import servers
from tests.conformance.eventlog.support import (
    Backend,
    new_topic,
    next_offsets,
    numbered,
    numbers,
    read_all,
    take,
)
from tests.conformance.eventlog.tailing import dense


class Server:
    """A server of this test's own, which it may kill."""

    def __init__(self, component: Component, log: Path) -> None:
        self._component, self._log = component, log
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = await asyncio.to_thread(servers.start, self._component, self._log)

    async def kill(self) -> None:
        assert self._process is not None
        await asyncio.to_thread(servers.kill, self._process)

    @contextmanager
    def running(self) -> Iterator["Server"]:
        self._process = servers.start(self._component, self._log)
        try:
            yield self
        finally:
            servers.kill(self._process)


async def _insist(log: EventLog, records: list[NewRecord]) -> int:
    """Append until it is confirmed; returns how many times that failed."""
    failures = 0
    while True:
        try:
            positions = await log.append(records)
        except (AppendUnknownError, LogUnavailableError):
            failures += 1
            continue
        assert len(positions) == len(records)
        return failures


class Surviving:
    kills = 3

    async def test_producers_and_consumers_come_back_without_loss(
        self, server: Server, backend: Backend, log: EventLog
    ) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        consumer = log.consumer([topic.name], "group")
        await consumer.start()
        chance = random.Random(20260218)
        over, progress = asyncio.Event(), asyncio.Condition()
        written = 0
        seen: list[Record] = []

        async def produce() -> None:
            nonlocal written
            while not over.is_set():
                await _insist(log, numbered(topic, 40, first=written))
                written += 40
                async with progress:
                    progress.notify_all()

        async def consume() -> None:
            while not over.is_set():
                records = await consumer.poll(500, 0.2)
                seen.extend(records)
                try:
                    await consumer.commit(next_offsets(records))
                except LogUnavailableError:
                    continue

        async def trouble() -> None:
            for _ in range(self.kills):
                await asyncio.sleep(chance.uniform(0.1, 0.6))
                await server.kill()
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                await server.start()
                enough = written + 400
                async with progress:
                    await progress.wait_for(lambda enough=enough: written >= enough)  # type: ignore[misc]
            over.set()

        async with asyncio.TaskGroup() as tasks:
            for work in (produce(), consume(), trouble()):
                tasks.create_task(work)
        stored = await read_all(log, topic)
        for partition, records in stored.items():
            assert [record.offset for record in records] == list(range(len(records))), partition
        assert {n for records in stored.values() for n in numbers(records)} == set(range(written))
        places = {(record.partition, record.offset) for record in seen}
        rest = {(r.partition, r.offset) for records in stored.values() for r in records} - places
        while rest:
            rest -= {(record.partition, record.offset) for record in await take(consumer, 1)}
        await consumer.close()

    async def test_a_tail_goes_on_where_it_was(self, server: Server, backend: Backend, log: EventLog) -> None:
        topic = new_topic()
        await log.ensure_topics([topic])
        starts, seen, written = dict.fromkeys(range(topic.partitions), 0), list[Record](), 0
        async with aclosing(log.tail(topic.name, starts)) as batches:

            async def follow() -> None:
                values: set[int] = set()
                while len(values) < written or not over.is_set():
                    batch = await anext(batches)
                    seen.extend(batch)
                    values.update(numbers(batch))

            over = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(follow())
                for _ in range(self.kills):
                    await _insist(log, numbered(topic, 100, first=written))
                    written += 100
                    await server.kill()
                    await server.start()
                    await _insist(log, numbered(topic, 100, first=written))
                    written += 100
                # Counted before it is written: a follower that is behind would be content without it.
                written += 1
                over.set()
                await _insist(log, numbered(topic, 1, first=written - 1))
                await following
        dense(seen, starts)
        assert set(numbers(seen)) == set(range(written))

    async def test_a_call_waits_for_the_server_and_a_poll_gives_nothing_meanwhile(
        self, server: Server, backend: Backend, log: EventLog
    ) -> None:
        topic = new_topic(partitions=1)
        await log.ensure_topics([topic])
        await log.append(numbered(topic, 5))
        consumer = log.consumer([topic.name], f"group-{topic.name}")
        await consumer.start()
        await consumer.commit(next_offsets(await take(consumer, 5)))
        await server.kill()
        assert await consumer.poll(10, 0.3) == []
        bounds = asyncio.create_task(log.bounds(topic.name))
        await asyncio.sleep(0.2)
        assert not bounds.done()
        await server.start()
        assert (await bounds)[0].high == 5
        await _insist(log, numbered(topic, 5, first=5))
        assert sorted(set(numbers(await take(consumer, 5)))) == [5, 6, 7, 8, 9]
        await consumer.close()

    async def test_a_server_that_stays_away_is_a_clear_error(
        self, server: Server, backend: Backend, impatient_log: EventLog
    ) -> None:
        topic = new_topic(partitions=1)
        await impatient_log.ensure_topics([topic])
        await server.kill()
        with pytest.raises(LogUnavailableError, match="headrace status"):
            await impatient_log.bounds(topic.name)
        with pytest.raises((LogUnavailableError, AppendUnknownError)):
            await impatient_log.append([NewRecord(topic.name, b"k", b"v")])
        await server.start()
        await _insist(impatient_log, numbered(topic, 1))
