"""Whether the replica may answer: it must be streaming and not too far behind (bounded staleness)."""

import time
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from core.log import Logger

CHECK_SECONDS: Final = 1.0
"""The replica is asked at most this often."""

_log = Logger("headrace.database")

# A replica that has replayed all it received is current only while it receives: without a
# receiver, or on a server that is no replica (any more), nothing is known.
_STALENESS = text(
    """
    select case
        when not pg_is_in_recovery() then 0
        when not exists (select from pg_stat_wal_receiver) then 'infinity'::float8
        when pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() then 0
        else coalesce(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()), 'infinity'::float8)
    end
    """
)


class ReplicaGuard:
    """Remembers for a second whether the replica may answer.

    Args:
        engine: the replica's pool.
        max_staleness: seconds that an answer of the replica may be behind the primary.
    """

    def __init__(self, engine: AsyncEngine, max_staleness: float) -> None:
        self._engine = engine
        self._max = max_staleness
        self._usable = False
        self._until = 0.0

    async def usable(self) -> bool:
        """False while the replica is away, cut off or too far behind."""
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + CHECK_SECONDS  # others take the last answer meanwhile
            self._set(await self._ask())
        return self._usable

    async def _ask(self) -> bool:
        try:
            async with self._engine.connect() as connection:
                staleness = float(await connection.scalar(_STALENESS) or 0)
        except (DBAPIError, PoolTimeoutError, OSError, TimeoutError):
            return False
        return staleness <= self._max

    def _set(self, usable: bool) -> None:
        if usable != self._usable:
            _log.info("replica answers reads" if usable else "replica left out: away or too far behind")
        self._usable = usable
