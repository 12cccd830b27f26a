"""What every engine reports: time of each statement, and how full the pools are."""

import time
import weakref
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.pool import QueuePool

from core import telemetry

_POOLS: Final[weakref.WeakSet[QueuePool]] = weakref.WeakSet()
_BEGAN: Final = "headrace_began"

telemetry.DB_POOL_CONNECTIONS.labels("in_use").set_function(lambda: sum(pool.checkedout() for pool in _POOLS))
telemetry.DB_POOL_CONNECTIONS.labels("idle").set_function(lambda: sum(pool.checkedin() for pool in _POOLS))
telemetry.DB_POOL_CONNECTIONS.labels("max").set_function(lambda: sum(pool.size() for pool in _POOLS))


def observe(engine: Engine) -> None:
    """Report the engine's statements and pool from now on."""
    if isinstance(engine.pool, QueuePool):
        _POOLS.add(engine.pool)

    def before(connection: Any, *_: object) -> None:
        connection.info[_BEGAN] = time.perf_counter()

    def after(connection: Any, *_: object) -> None:
        telemetry.DB_QUERY_DURATION.observe(time.perf_counter() - connection.info[_BEGAN])

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
