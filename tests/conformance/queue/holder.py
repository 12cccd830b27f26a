"""A consumer as a process: takes messages, says so, and holds them until it is killed.

python -m tests.conformance.queue.holder QUEUE COUNT LEASE_SECONDS
"""

import asyncio
import sys

from core.queue import open_queue
from core.queue.api import WorkQueue
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings, QueueSettings


async def main(name: str, count: int, lease_seconds: float) -> None:
    settings = QueueSettings()
    opened: WorkQueue
    if settings.queue_url.startswith("postgresql:"):
        opened = PostgresQueue(DatabaseSettings(), lease_seconds=lease_seconds)
    else:
        opened = open_queue(settings, DatabaseSettings())
    async with opened as queue, queue.consume(name, prefetch=count) as consumer:
        for _ in range(count):
            await consumer.get()
        print("holding", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
