"""What the conformance tests of the event log share: topics of their own, members in processes of their own."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from core.eventlog.api import Bounds, EventLog, GroupConsumer, NewRecord, Record
from core.settings import DatabaseSettings, EventLogSettings, Settings
from core.topology import Topic


@dataclass(frozen=True)
class Backend:
    """One adapter on its server."""

    eventlog: EventLogSettings
    database: DatabaseSettings
    session_timeout: float
    open: Callable[[], EventLog]


def new_topic(*, partitions: int = 3, max_record_bytes: int = 1_000_000) -> Topic:
    """A topic of a name that no other test uses."""
    return Topic(
        f"test.{uuid.uuid4().hex}",
        partitions,
        timedelta(days=1),
        "key",
        "bytes",
        max_record_bytes=max_record_bytes,
    )


def numbered(topic: Topic, count: int, *, keys: int = 10, first: int = 0) -> list[NewRecord]:
    """Records whose values are their numbers, spread over some keys."""
    return [NewRecord(topic.name, b"key-%d" % (n % keys), b"%d" % n) for n in range(first, first + count)]


async def read_all(log: EventLog, topic: Topic) -> dict[int, list[Record]]:
    """Every record of the topic, by partition."""
    found: dict[int, list[Record]] = {}
    for partition, bounds in (await log.bounds(topic.name)).items():
        found[partition] = await read(log, topic, partition, bounds)
    return found


async def read(log: EventLog, topic: Topic, partition: int, bounds: Bounds) -> list[Record]:
    return [r async for batch in log.read(topic.name, partition, bounds.low, bounds.high) for r in batch]


def numbers(records: Iterable[Record]) -> list[int]:
    return [int(record.value) for record in records]


def next_offsets(records: Iterable[Record]) -> dict[tuple[str, int], int]:
    """What to commit when these records are done."""
    return {(record.topic, record.partition): record.offset + 1 for record in records}


async def take(consumer: GroupConsumer, count: int, *, seconds: float = 30) -> list[Record]:
    """Poll until `count` records have come.

    Raises:
        TimeoutError: with what came instead.
    """
    found: list[Record] = []
    deadline = asyncio.get_running_loop().time() + seconds
    while len(found) < count:
        found += await consumer.poll(count - len(found), 0.5)
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(
                f"{len(found)} of {count} records after {seconds} s; holds {consumer.assignment()}"
            )
    return found


async def until(
    condition: Callable[[], bool], *, polling: Sequence[GroupConsumer] = (), seconds: float = 30
) -> list[Record]:
    """Wait for a condition while some consumers poll (a member must, to take part); returns what they got."""
    found: list[Record] = []
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"not so after {seconds} s; members hold {[c.assignment() for c in polling]}")
        for consumer in polling:
            found += await consumer.poll(1000, 0.05)
        await asyncio.sleep(0.02)
    return found


class Member:
    """A group member in another process (`member.py`): it can be frozen and killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 40)
        assert line, "the member ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, **command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        return await self.answer()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def member(backend: Backend, topic: Topic, group: str) -> AsyncIterator[Member]:
    """A member that has joined; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.eventlog.member", topic.name, group, str(backend.session_timeout),
        env=dict(os.environ) | _environment(backend.eventlog) | _environment(backend.database),
        cwd=Path(__file__).parents[3], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        running = Member(process)
        assert await running.answer() == {"joined": group}
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in settings
    }
    return {f"HEADRACE_{name.upper()}": str(value) for name, value in plain.items() if value is not None}
