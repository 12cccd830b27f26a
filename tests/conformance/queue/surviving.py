"""The server of the queue goes away under load: consumers come back by themselves, nothing is lost."""

import asyncio
import os

from core.database import Database, tenant
from core.ids import new_id
from core.messaging import queue_topology
from core.messaging.queue_relay import QueueRelay
from core.messaging.queues import Message, QueueConsumer, enqueue
from tests.conformance.eventlog.surviving import Server
from tests.conformance.queue.support import Backend, until

DOCUMENTS = "document.index"
AWAY_SECONDS = float(os.environ.get("HEADRACE_TEST_AWAY_SECONDS", "4"))
"""How long the server is away; 60 for the outage that the documentation promises to survive."""


class Surviving:
    async def test_consumers_come_back_and_counts_match(
        self, server: Server, backend: Backend, app_database: Database
    ) -> None:
        org = new_id("org")
        sent: set[str] = set()
        handled: dict[str, int] = {}
        unknown: list[int] = []
        stop = asyncio.Event()

        async def produce() -> None:
            """Transactions go on while the queue is away: their messages wait in the outbox."""
            while not stop.is_set():
                try:
                    with tenant(org):
                        async with app_database.writer() as connection:
                            message = await enqueue(connection, DOCUMENTS, "index", b"{}", org)
                except Exception:
                    # Where the queue lives in the database, both are away. Whether this one was committed is not known.
                    unknown.append(1)
                    await asyncio.sleep(0.1)
                    continue
                sent.add(message)
                await asyncio.sleep(0.01)

        async def handle(message: Message) -> None:
            handled[message.id] = handled.get(message.id, 0) + 1

        async def more() -> bool:
            return len(handled) >= before + 50

        async with backend.open() as queue, backend.open() as other:
            await queue_topology.ensure(queue)
            relay = QueueRelay(backend.database, queue)
            consumers = [QueueConsumer(of, DOCUMENTS, handle) for of in (queue, other)]
            workers: list[QueueRelay | QueueConsumer] = [relay, *consumers]
            running = [asyncio.create_task(work.run()) for work in workers]
            producing = asyncio.create_task(produce())
            before = 0
            await until(more)
            await server.kill()
            await asyncio.sleep(AWAY_SECONDS)
            await server.start()
            before = len(handled)
            await until(more, seconds=60)
            stop.set()
            await producing

            async def all_handled() -> bool:
                return sent <= handled.keys()

            await until(all_handled, seconds=60)
            for consumer in consumers:
                assert consumer.watchdog.consuming
                consumer.stop()
            relay.stop()
            await asyncio.gather(*running)
            assert (await queue.depths([DOCUMENTS]))[DOCUMENTS].ready == 0
        # A message may come twice around the outage, and none comes from nowhere.
        assert sent <= handled.keys()
        assert len(handled.keys() - sent) <= len(unknown)
        assert sum(handled.values()) < len(sent) + 100
