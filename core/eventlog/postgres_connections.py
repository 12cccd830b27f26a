"""Connections of the event log to PostgreSQL that outlive the server being killed.

A call takes a connection, waits out a server that is restarting (bounded), and is repeated where
repeating is safe. Notices wake the tails that wait for new records.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg

from core.eventlog.api import LogUnavailableError
from core.log import Logger
from core.settings import DatabaseSettings
from core.tasks import cancel

Connection = Any
T = TypeVar("T")

PATIENCE: Final = 10.0
"""Seconds that a call waits for a server to come back, where nothing else is said."""
COMMAND_TIMEOUT: Final = 60.0
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 1.0
CHANNEL: Final = "eventlog"

_log = Logger(__name__)


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    def get_reset_query(self) -> str:
        # Nothing here leaves state in a session, and the reset would cost every call a round trip.
        return ""


class ConnectionLostError(Exception):
    """The connection broke while a statement ran; whether it was done is not known."""


def lost(error: BaseException) -> bool:
    """Whether the error means that the server or the way to it is gone (not that it refused)."""
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, ValueError)
    return isinstance(
        error,
        OSError
        | asyncpg.PostgresConnectionError
        | asyncpg.AdminShutdownError
        | asyncpg.CrashShutdownError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.DeadlockDetectedError
        | asyncpg.IdleInTransactionSessionTimeoutError
        | asyncpg.ReadOnlySQLTransactionError
        # The driver's own state after a cut in the wrong moment, or a host that is no primary (yet).
        | asyncpg.InternalClientError,
    )


class Backoff:
    """Pauses of 0.05 s, doubling to 1 s (a restarted PostgreSQL answers within a second)."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    async def wait(self) -> None:
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, _LAST_PAUSE)

    def reset(self) -> None:
        """Start from the shortest pause again, after a success."""
        self._pause = _FIRST_PAUSE


class Connections:
    """A pool as role hr_system, and one listening connection for all tails of this process.

    Args:
        schema: where unqualified names are looked up; also the channel of the notices.
        unavailable: what is raised where the server does not come back in time.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        patience: float,
        *,
        schema: str = CHANNEL,
        unavailable: type[Exception] = LogUnavailableError,
    ) -> None:
        self._settings, self._patience = settings, patience
        self._schema, self._unavailable = schema, unavailable
        self._pool: Any = None
        self._listener: asyncio.Task[None] | None = None
        self._wakers: set[Callable[[str], None]] = set()

    def _arguments(self) -> dict[str, Any]:
        return {
            "dsn": self._settings.database_url,
            "user": "hr_system",
            "password": self._settings.database_system_password.get_secret_value(),
            "target_session_attrs": "primary",
            "timeout": 5.0,
            "server_settings": {
                "application_name": self._schema,
                "jit": "off",
                "search_path": self._schema,
                # A process frozen in the middle of an append must not hold its locks for ever.
                "idle_in_transaction_session_timeout": "10s",
            },
        }

    async def open(self) -> None:
        """Prepare the pool; the first connection is made by the first call."""
        self._pool = asyncpg.create_pool(
            min_size=0,
            max_size=self._settings.database_pool_size,
            command_timeout=COMMAND_TIMEOUT,
            connection_class=_Connection,
            **self._arguments(),
        )
        await self._pool

    async def close(self) -> None:
        """End the listener and the pool; calls that still run get ten seconds."""
        if self._listener is not None:
            await cancel(self._listener)
            self._listener = None
        if self._pool is not None:
            try:
                async with asyncio.timeout(10):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()
            self._pool = None

    async def call(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        repeatable: bool = True,
        patience: float | None = None,
    ) -> T:
        """Run `work` with a connection, waiting up to `patience` seconds (the log's own where not
        given) for a server that is away.

        Raises:
            LogUnavailableError (or what `unavailable` says): no server in time, nothing was done.
            ConnectionLostError: it broke during work that is not `repeatable`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._patience if patience is None else patience)
        backoff = Backoff()
        while True:
            try:
                connection = await self._pool.acquire(timeout=max(deadline - loop.time(), 1.0))
            except Exception as error:
                await self._pause_or_give_up(error, deadline, backoff)
                continue
            try:
                return await work(connection)
            except asyncpg.DeadlockDetectedError as error:
                # Rolled back as a whole, so that repeating is safe whatever it was.
                await self._pause_or_give_up(error, deadline, backoff)
            except Exception as error:
                if not lost(error):
                    raise
                # A cut connection may still look alive; one that the pool took back already refuses.
                with contextlib.suppress(asyncpg.InterfaceError):
                    connection.terminate()
                if not repeatable:
                    raise ConnectionLostError(str(error)) from error
                await self._pause_or_give_up(error, deadline, backoff)
            finally:
                await self._release(connection)

    async def fetch(self, query: str, *arguments: object, patience: float | None = None) -> list[Any]:
        """Rows of a statement that may be repeated."""
        return await self.call(lambda c: c.fetch(query, *arguments), patience=patience)

    async def fetchrow(self, query: str, *arguments: object, patience: float | None = None) -> Any:
        """First row of a statement that may be repeated, or None."""
        return await self.call(lambda c: c.fetchrow(query, *arguments), patience=patience)

    async def fetchval(self, query: str, *arguments: object) -> Any:
        """First value of a statement that may be repeated, or None."""
        return await self.call(lambda c: c.fetchval(query, *arguments))

    async def execute(self, query: str, *arguments: object) -> str:
        """Command tag (`DELETE 3`) of a statement that may be repeated."""
        return await self.call(lambda c: c.execute(query, *arguments))

    async def _pause_or_give_up(self, error: Exception, deadline: float, backoff: Backoff) -> None:
        if not lost(error):
            raise error
        if asyncio.get_running_loop().time() >= deadline:
            raise self._unavailable(
                f"the {self._schema} at {self._settings.database_url} does not answer "
                f"({type(error).__name__}: {error}); see `headrace status`"
            ) from error
        await backoff.wait()

    async def _release(self, connection: Connection) -> None:
        # A connection that broke in the middle cannot always be given back politely.
        try:
            await self._pool.release(connection)
        except Exception as error:
            if not lost(error):
                raise

    def subscribe(self, waker: Callable[[str], None]) -> None:
        """Call `waker(payload)` for every notice (`""` after a reconnect: anything may be new)."""
        self._wakers.add(waker)
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name=f"{self._schema}-listener")

    def unsubscribe(self, waker: Callable[[str], None]) -> None:
        self._wakers.discard(waker)

    def _wake(self, payload: str) -> None:
        for waker in tuple(self._wakers):
            waker(payload)

    async def _listen(self) -> None:
        backoff = Backoff()
        while True:
            try:
                connection = await asyncpg.connect(**self._arguments())
            except Exception as error:
                if not lost(error):
                    raise
                await backoff.wait()
                continue
            try:
                gone = asyncio.Event()
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                await connection.add_listener(self._schema, lambda *notice: self._wake(notice[3]))
                backoff.reset()
                self._wake("")
                await gone.wait()
                _log.warn("connection for notices lost, reconnecting", schema=self._schema)
            except Exception as error:
                if not lost(error):
                    raise
                await backoff.wait()
            finally:
                connection.terminate()
