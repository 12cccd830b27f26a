"""Access to PostgreSQL: `writer()` and `reader()`, by role, tenant set for every transaction.

database = Database(DatabaseSettings(), role="app")
with tenant("org_…"):
    async with database.writer() as connection:
        await connection.execute(text("insert …"))
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from core.database.metrics import observe
from core.database.replica import ReplicaGuard
from core.database.tenancy import TenantRequiredError, current_tenant, tenant
from core.database.urls import Role, address, dsn, role_url
from core.settings import DatabaseSettings

__all__ = ["Database", "Role", "TenantRequiredError", "current_tenant", "dsn", "role_url", "tenant"]

_WRITE = text("select set_config('app.tenant', :tenant, true)")
_READ = text(
    "select set_config('transaction_read_only', 'on', true), set_config('app.tenant', :tenant, true)"
)


class Database:
    """Pools of one process for one role. Role `app` sets the tenant at the start of each transaction.

    Args:
        statement_timeout: seconds after which the server cancels a statement.
        max_staleness: seconds that an answer of the replica may be behind.
        pin_seconds: a tenant that wrote here reads from the primary this long: it sees its own writes.
        patience: seconds that a transaction waits for a server that is restarting.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        role: Role,
        statement_timeout: float = 30.0,
        max_staleness: float = 10.0,
        pin_seconds: float = 5.0,
        patience: float = 8.0,
    ) -> None:
        self.role = role
        self._writer = _engine(settings, role, statement_timeout, replica=False)
        self._reader: AsyncEngine | None = None
        if settings.database_replica_url:
            self._reader = _engine(settings, role, statement_timeout, replica=True)
            self._guard = ReplicaGuard(self._reader, max_staleness)
        self._pin_seconds = pin_seconds
        # PostgreSQL heals in under 6 s.
        self._patience = patience
        self._pinned: dict[str, float] = {}

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[AsyncConnection]:
        """One transaction on the primary; committed at the end, rolled back on an exception.

        Waits up to `patience` seconds for a server that is restarting. What breaks after the first
        statement is the caller's: only he knows whether a second try is right.

        Raises:
            TenantRequiredError: role `app` outside of `with tenant(…)`.
            sqlalchemy.exc.DBAPIError, OSError: no server in time, or the work failed.
        """
        tenant_id = self._tenant()
        try:
            async with self._begin(self._writer, _WRITE, tenant_id) as connection:
                yield connection
        finally:
            # Also after an error: a commit whose answer was lost may have happened.
            if self._reader is not None:
                self._pin(tenant_id)

    @asynccontextmanager
    async def reader(self, *, primary: bool = False) -> AsyncIterator[AsyncConnection]:
        """One read-only transaction. On the replica, unless this tenant wrote here a moment ago or the
        replica is away or too far behind.

        Args:
            primary: never on the replica: for what other processes write and a caller goes on from.

        Raises: as `writer`.
        """
        tenant_id = self._tenant()
        replica = None
        if (
            not primary
            and self._reader is not None
            and self._pinned.get(tenant_id, 0.0) <= time.monotonic()
            and await self._guard.usable()
        ):
            replica = self._reader
        async with self._begin(self._writer, _READ, tenant_id, rather=replica) as connection:
            yield connection

    async def close(self) -> None:
        await self._writer.dispose()
        if self._reader is not None:
            await self._reader.dispose()

    def _tenant(self) -> str:
        return current_tenant() if self.role == "app" else ""

    @asynccontextmanager
    async def _begin(
        self, engine: AsyncEngine, first: TextClause, tenant_id: str, *, rather: AsyncEngine | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """A transaction of `rather` where that answers at once, else of `engine`, waited for."""
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            try:
                connection = await _open(rather or engine, first, tenant_id)
                break
            except (DBAPIError, OSError, TimeoutError) as error:
                if not _is_away(error) or (rather is None and time.monotonic() + pause > deadline):
                    raise
            if rather is None:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            rather = None
        try:
            yield connection
            await connection.commit()
        finally:
            await _close(connection)

    def _pin(self, tenant_id: str) -> None:
        now = time.monotonic()
        if len(self._pinned) > 10_000:
            self._pinned = {key: until for key, until in self._pinned.items() if until > now}
        self._pinned[tenant_id] = now + self._pin_seconds


async def _open(engine: AsyncEngine, first: TextClause, tenant_id: str) -> AsyncConnection:
    connection = await engine.connect()
    try:
        await connection.begin()
        await connection.execute(first, {"tenant": tenant_id})
    except BaseException:
        await _close(connection)
        raise
    return connection


async def _close(connection: AsyncConnection) -> None:
    """Roll back what is not committed and give the connection back, also when we are being cancelled."""
    await asyncio.shield(asyncio.create_task(connection.close()))


def _is_away(error: Exception) -> bool:
    """True for a server that is down, starting or stopping; false for one that refuses."""
    if not isinstance(error, DBAPIError):
        return True
    # 57P01-57P03: shutting down, crashed, starting; 08: connection; 25006: became a replica.
    state = str(getattr(error.orig, "sqlstate", "") or "")
    return error.connection_invalidated or state.startswith(("57P", "08")) or state == "25006"


def _engine(
    settings: DatabaseSettings, role: Role, statement_timeout: float, *, replica: bool
) -> AsyncEngine:
    several = len(address(settings, replica=replica).hosts) > 1
    engine = create_async_engine(
        role_url(settings, role, replica=replica),
        hide_parameters=True,  # errors are logged; the values are the tenants'
        pool_size=settings.database_pool_size,
        max_overflow=0,
        # No ping: the first statement of each transaction finds a dead connection and is repeated.
        pool_timeout=10,
        connect_args={
            "timeout": 5,
            "server_settings": {
                "application_name": f"headrace-{role}",
                "statement_timeout": str(int(statement_timeout * 1000)),
                # A process that hangs in a transaction must not hold its locks for ever.
                "idle_in_transaction_session_timeout": "60000",
                "jit": "off",
            },
        }
        | ({"target_session_attrs": "primary"} if several and not replica else {}),
    )
    observe(engine.sync_engine)
    return engine
