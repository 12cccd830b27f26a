"""One worker at a time for a table that is emptied in order: lease, waking, and what to do when it fails.

The lease is a session lock of the very connection that reads and deletes the rows, so whoever loses
the lease can no longer delete.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import asyncpg
from prometheus_client import Gauge

from core import telemetry
from core.database.urls import dsn
from core.log import Logger
from core.settings import DatabaseSettings

State = Literal["stopped", "connecting", "standby", "leading"]

_log = Logger("headrace.relay")


class Leader(ABC):
    """Runs until `stop()`. What fails is waited out with growing pauses.

    Args:
        settings: where the table is (role `system`).
        what: how logs call it.
        lease: advisory lock of the one that works.
        channel: NOTIFY channel that wakes it.
        leading: shows 1 where this process holds the lease.
        poll_seconds: looks this often without being woken, should a notification be lost.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        what: str,
        lease: int,
        channel: str,
        leading: Gauge,
        poll_seconds: float,
    ) -> None:
        self._dsn = dsn(settings, "system")
        self._what, self._lock, self._channel, self._gauge = what, lease, channel, leading
        self._poll = poll_seconds
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.state: State = "stopped"
        self.trouble = ""
        """What the last attempt failed with; empty while all is well."""

    @abstractmethod
    async def _batch(self, connection: asyncpg.Connection) -> int:
        """Move the head of the table; returns how many rows it dealt with."""

    async def run(self) -> None:
        """Work until `stop()`, then finish the batch at hand and give the lease back."""
        pause = 0.05
        while not self._stopping.is_set():
            try:
                self._enter("connecting")
                async with self._session() as connection:
                    if await self._lease(connection):
                        self._enter("leading")
                        async for _ in self._work(connection):
                            pause, self.trouble = 0.05, ""
            except Exception as error:
                # Whatever an adapter raises, it must live: the rows stay and are tried again.
                self.trouble = f"{type(error).__name__}: {error}"
                telemetry.OUTBOX_FAILURES.labels(type(error).__name__).inc()
                _log.warn(f"{self._what} failed, will try again", error=self.trouble[:500], pause=pause)
                await self._wait(self._stopping, pause)
                pause = min(pause * 2, 2.0)
        self._enter("stopped")

    def stop(self) -> None:
        """Ask `run` to end. What is left waits for the next one."""
        self._stopping.set()
        self._wake.set()

    async def drain(self) -> int:
        """Move everything that is there now, without leading for longer; returns how many rows.

        Raises:
            RuntimeError: another one is working.
        """
        moved = 0
        async with self._session() as connection:
            if not await connection.fetchval("select pg_try_advisory_lock($1)", self._lock):
                raise RuntimeError(f"another {self._what} holds the lease")
            while count := await self._batch(connection):
                moved += count
        return moved

    def _enter(self, state: State) -> None:
        if state != self.state:
            _log.info(self._what, state=state)
        self.state = state
        self._gauge.set(state == "leading")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=5,
            command_timeout=60,
            server_settings={
                "application_name": "headrace-relay",
                "search_path": "public, eventlog",
                # A host that vanished must give the lease back within seconds.
                "tcp_keepalives_idle": "3",
                "tcp_keepalives_interval": "1",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "6000",
            },
        )
        try:
            await connection.add_listener(self._channel, lambda *_: self._wake.set())
            yield connection
        finally:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=2)
            connection.terminate()

    async def _lease(self, connection: asyncpg.Connection) -> bool:
        while not self._stopping.is_set():
            if await connection.fetchval("select pg_try_advisory_lock($1)", self._lock):
                return True
            self._enter("standby")
            self.trouble = ""
            await self._wait(self._stopping, self._poll)
        return False

    async def _work(self, connection: asyncpg.Connection) -> AsyncIterator[int]:
        while not self._stopping.is_set():
            self._wake.clear()
            moved = await self._batch(connection)
            yield moved
            if not moved and not self._stopping.is_set():
                await self._wait(self._wake, self._poll)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
