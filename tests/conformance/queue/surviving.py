"""The server of the queue goes away under load: consumers come back by themselves, nothing is lost."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

import pytest

from core.database import Database, tenant
from core.ids import new_id
from core.messaging import queue_topology
from core.messaging.queue_relay import QueueRelay
from core.messaging.queues import Message, Permanent, QueueConsumer, enqueue
from core.queue.api import NewMessage, QueueUnavailableError
from core.topology import dead_letters_of
from tests.conformance.eventlog.surviving import Server
from tests.conformance.queue.support import Backend, until

DOCUMENTS = "document.index"
PATIENCE = 1.0
"""Seconds that a call of these queues waits: while the server is away calls fail, and are made again."""
AWAY_SECONDS = float(os.environ.get("HEADRACE_TEST_AWAY_SECONDS", "4"))
"""How long the server is away. What a minute of it came to stands in docs/acceptance-conversations.md."""
BAD = b"bad"


def counting(
    publish: Callable[[Sequence[NewMessage]], Awaitable[None]], refused: list[int]
) -> Callable[[Sequence[NewMessage]], Awaitable[None]]:
    """`publish`, with a mark for each time that the server was away for longer than it waits."""

    async def counted(messages: Sequence[NewMessage]) -> None:
        try:
            await publish(messages)
        except QueueUnavailableError:
            refused.append(1)
            raise

    return counted


class Surviving:
    async def test_consumers_come_back_and_counts_match(
        self, server: Server, backend: Backend, app_database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        org = new_id("org")
        sent: set[str] = set()
        bad: set[str] = set()
        handled: dict[str, int] = {}
        unknown: list[int] = []
        refused: list[int] = []
        stop, away = asyncio.Event(), asyncio.Event()

        async def produce() -> None:
            """Transactions go on while the queue is away: their messages wait in the outbox."""
            number = 0
            while not stop.is_set():
                number += 1
                body = b"{}" if number % 10 else BAD
                try:
                    with tenant(org):
                        async with app_database.writer() as connection:
                            message = await enqueue(connection, DOCUMENTS, "index", body, org)
                except Exception:
                    # Where the queue lives in the database, both are away. Whether this one was committed is not known.
                    unknown.append(1)
                    await asyncio.sleep(0.1)
                    continue
                (sent if body != BAD else bad).add(message)
                await asyncio.sleep(0.01)

        async def handle(message: Message) -> None:
            if message.body == BAD:
                await away.wait()  # so that some are given up while there is nowhere to put them
                raise Permanent("bad")
            handled[message.id] = handled.get(message.id, 0) + 1

        async def more() -> bool:
            return len(handled) >= before + 50

        async with backend.open() as queue, backend.open() as other:
            for one in (queue, other):
                monkeypatch.setattr(one, "publish", counting(one.publish, refused))
            await queue_topology.ensure(queue)
            relay = QueueRelay(backend.database, queue)
            consumers = [QueueConsumer(of, DOCUMENTS, handle) for of in (queue, other)]
            workers: list[QueueRelay | QueueConsumer] = [relay, *consumers]
            running = [asyncio.create_task(work.run()) for work in workers]
            producing = asyncio.create_task(produce())
            before = 0
            await until(more)
            await server.kill()
            away.set()
            await asyncio.sleep(AWAY_SECONDS)
            await server.start()
            before = len(handled)
            await until(more, seconds=60)
            stop.set()
            await producing

            async def dead() -> set[str]:
                async with queue.browse(dead_letters_of(DOCUMENTS), 10_000) as (_, letters):
                    return {letter.id for letter in letters}

            async def all_done() -> bool:
                return sent <= handled.keys() and bad <= await dead()

            await until(all_done, seconds=60)
            for consumer in consumers:
                assert consumer.watchdog.consuming
                consumer.stop()
            relay.stop()
            await asyncio.gather(*running)
            assert (await queue.depths([DOCUMENTS]))[DOCUMENTS].ready == 0
            given_up = await dead()
        # A message may come twice around the outage, and none comes from nowhere.
        assert sent <= handled.keys()
        assert not handled.keys() & given_up
        assert len(handled.keys() - sent) + len(given_up - bad) <= len(unknown)
        assert sum(handled.values()) < len(sent) + 100
        assert refused, "the outage was longer than the patience of a call"
