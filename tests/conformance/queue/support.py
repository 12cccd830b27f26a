"""What the conformance tests of the work queue share: queues of their own, consumers in other processes."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from core.messaging import queue_topology
from core.messaging.queues import Handler, QueueConsumer
from core.queue.api import DEFAULT_EXCHANGE, Binding, Consumer, Delivery, NewMessage, Queue, WorkQueue
from core.settings import DatabaseSettings, QueueSettings, Settings
from core.topology import QueueFamily

REPOSITORY = Path(__file__).parents[3]
LEASE_SECONDS = 2.0
"""Of the queue on tables: how long a dead consumer keeps what it held."""


@dataclass(frozen=True)
class Backend:
    """One adapter on its server."""

    settings: QueueSettings
    database: DatabaseSettings
    open: Callable[[], WorkQueue]


def new_name() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


async def new_queue(
    queue: WorkQueue,
    bindings: Sequence[Binding] = (),
    *,
    ttl: timedelta | None = None,
    dead_letter: str | None = None,
    single_active: bool = False,
) -> str:
    name = new_name()
    await queue.declare([], [Queue(name, tuple(bindings), ttl, dead_letter, single_active)])
    return name


async def new_family(
    queue: WorkQueue, *, ttl: timedelta | None = None, ladder: Sequence[float] = (0.1, 0.2, 0.3)
) -> QueueFamily:
    """A declared family of its own, whose pauses are short."""
    name = new_name()
    family = QueueFamily(
        name, name, "direct", "work", "bytes", ttl=ttl, ladder=tuple(timedelta(seconds=s) for s in ladder)
    )
    await queue_topology.ensure(queue, [family])
    return family


def to(name: str, *bodies: bytes) -> list[NewMessage]:
    """Messages straight to a queue."""
    return [NewMessage(DEFAULT_EXCHANGE, name, uuid.uuid4().hex, body) for body in bodies]


def numbered(name: str, count: int) -> list[NewMessage]:
    return to(name, *(b"%d" % number for number in range(count)))


async def take(consumer: Consumer, count: int, *, seconds: float = 30) -> list[Delivery]:
    """The next `count` messages. Raises: TimeoutError."""
    found: list[Delivery] = []
    try:
        async with asyncio.timeout(seconds):
            while len(found) < count:
                found.append(await consumer.get())
    except TimeoutError:
        raise TimeoutError(f"{len(found)} of {count} messages after {seconds} s") from None
    return found


async def nothing_comes(consumer: Consumer, seconds: float = 0.7) -> bool:
    """True where no message is given out for a while."""
    try:
        async with asyncio.timeout(seconds):
            await consumer.get()
    except TimeoutError:
        return True
    return False


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30) -> None:
    """Wait until it holds. Raises: TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


async def until_ready(queue: WorkQueue, name: str, count: int) -> None:
    """Wait until `count` messages of the queue wait for a consumer."""

    async def so() -> bool:
        return (await queue.depths([name]))[name].ready == count

    await until(so)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


@asynccontextmanager
async def working(
    queue: WorkQueue, name: str, handler: Handler, family: QueueFamily | None = None, **options: int
) -> AsyncIterator[QueueConsumer]:
    """A consumer that runs inside, and whose end is looked at."""
    consumer = QueueConsumer(queue, name, handler, family=family, **options)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await running


def environment(*settings: Settings) -> dict[str, str]:
    """What another process reads these settings from."""
    values = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(REPOSITORY)}
    for kind in settings:
        for name, value in kind:
            if value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                values[f"HEADRACE_{name.upper()}"] = text
    return values


@asynccontextmanager
async def holder(backend: Backend, name: str, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that has taken `count` messages and acknowledges none; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.queue.holder", name, str(count), str(LEASE_SECONDS),
        env=environment(backend.settings, backend.database), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"holding\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
