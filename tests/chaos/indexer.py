"""A run of the index without Dagster, batch after batch until nothing of the tenant waits, in a process that dies by
SIGKILL at a moment that is named: `upsert>` 2 is when the second `upsert` has answered, `<upsert` before it is asked.
"""

import asyncio
import functools
import os
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import pymilvus  # noqa: F401 - once, in the process that all others are forked from

from assets.knowledge import stages, worklist
from core.embedding.hashing import HashModel
from core.messaging import outbox
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings, VectorSettings
from core.vectors import Vectors

Fuse = tuple[str, int]
"""A moment and how often it comes to pass; ("", 0): never."""
INDEX: Final = ("ensure", "upsert", "count", "delete")
ROWS: Final = ("take", "advance", "publish", "replaced", "forget_chunks")
OBJECTS: Final = ("put", "get")
OUTBOX: Final = ("enqueue",)
MOMENTS: Final = [
    moment for name in (*OBJECTS, *ROWS, *INDEX, *OUTBOX) for moment in (f"<{name}", f"{name}>")
]


class Clock:
    """Counts the moments of each kind and ends the process at one."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse, self.past = fuse, Counter[str]()

    def tick(self, moment: str) -> None:
        self.past[moment] += 1
        if (moment, self.past[moment]) == self._fuse:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, holder: Any, names: tuple[str, ...]) -> None:
        for name in names:
            call = getattr(holder, name)
            setattr(
                holder, name, (self._later if asyncio.iscoroutinefunction(call) else self._now)(name, call)
            )

    def _now(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*arguments: Any, **more: Any) -> Any:
            self.tick(f"<{name}")
            result = call(*arguments, **more)
            self.tick(f"{name}>")
            return result

        return watched

    def _later(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def watched(*arguments: Any, **more: Any) -> Any:
            self.tick(f"<{name}")
            result = await call(*arguments, **more)
            self.tick(f"{name}>")
            return result

        return watched


def run(
    report: Connection, fuse: Fuse, tenant: str,
    database: DatabaseSettings, objects: ObjectSettings, vectors: VectorSettings,
) -> None:  # fmt: skip
    """Sends how often each moment came to pass."""
    clock = Clock(fuse)
    asyncio.run(_work(clock, tenant, database, objects, vectors))
    report.send(clock.past)


async def _work(
    clock: Clock, tenant: str, database: DatabaseSettings, objects: ObjectSettings, vectors: VectorSettings
) -> None:
    async with open_objects(objects, database) as store:
        clock.watch(type(store), OBJECTS)
    clock.watch(Vectors, INDEX)
    clock.watch(worklist, ROWS)
    clock.watch(outbox, OUTBOX)
    index = Vectors(vectors)
    async with stages.workshop(database, objects, HashModel()) as shop:
        while True:
            async with shop.database.writer() as connection:
                waiting = [one for one in await worklist.due(connection) if one.key[0] == tenant]
            if not waiting:
                break
            keys = [one.key for one in worklist.batch(waiting, last_large=True)]
            await stages.read_texts(shop, keys)
            await stages.make_passages(shop, keys)
            await stages.make_vectors(shop, keys)
            await stages.put_into_index(shop, index, keys)
    index.close()
