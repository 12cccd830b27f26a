"""A consumer that is made anew where an error ends it: a topic or queue that is not there yet, a server
that stays away while the group is joined. Without that, memory would answer and hear nothing any more."""

import asyncio
from collections.abc import Callable
from typing import Final

from core.log import Logger
from core.messaging.lanes import Lanes
from core.messaging.queues import QueueConsumer

PAUSE: Final = 2.0
_log = Logger("memory.consumers")


class Kept:
    """
    Args:
        name: for the log.
        make: the consumer, not running.
    """

    def __init__(self, name: str, make: Callable[[], Lanes | QueueConsumer], *, pause: float = PAUSE) -> None:
        self._name, self._make, self._pause = name, make, pause
        self._consumer = make()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()
        self._consumer.stop()

    async def run(self) -> None:
        """Consume until `stop`."""
        while not self._stopping.is_set():
            try:
                await self._consumer.run()
            except Exception as error:
                _log.error("a consumer has ended and begins anew", consumer=self._name, exc=error)
                try:
                    async with asyncio.timeout(self._pause):
                        await self._stopping.wait()
                except TimeoutError:
                    self._consumer = self._make()

    async def check(self) -> None:
        """Raises: ConsumerStalledError."""
        await self._consumer.watchdog.check()
