"""Dagster's storage on PostgreSQL, with connections that last.

`dagster_postgres` opens a connection for each query and closes it again: some forty a run, and two thirds of what
PostgreSQL costs an idle installation. Its web server alone holds one for each storage; so does every process of
ours. Named in the instance's `dagster.yaml` (`deploy/dagster_instance.py`).
"""

from typing import Any, Final

from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import pg_url_from_config
from psycopg2 import Error, extensions
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

STATEMENT_SECONDS: Final = 300
"""After which PostgreSQL gives a statement up; Dagster's longest is the yearly clean-up of ticks."""
RECYCLE_SECONDS: Final = 3600
"""Age at which a connection is replaced, so that a server's memory for it does not grow for ever."""
OVERFLOW: Final = 20
"""Connections beside the lasting one while threads ask at once; closed when they are given back."""


class _Runs(PostgresRunStorage):
    """Closes that of schedules too: an instance says goodbye to runs and events only."""

    def __init__(self, postgres_url: str, schedules: PostgresScheduleStorage) -> None:
        super().__init__(postgres_url)
        self._schedules = schedules

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()
        self._schedules._engine.dispose()


class _Events(PostgresEventLogStorage):
    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()


class LastingStorage(DagsterPostgresStorage):
    """One lasting connection for runs, one for events, one for schedules. They go with their instance: a code server
    makes one for each look of a sensor."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        # That of the class between would make all three with connections for a query each.
        DagsterStorage.__init__(self)  # type: ignore[no-untyped-call,arg-type]
        self.postgres_url, self.should_autocreate_tables, self._inst_data = postgres_url, True, inst_data
        self._schedule_storage = PostgresScheduleStorage(postgres_url)
        self._run_storage = _Runs(postgres_url, self._schedule_storage)
        self._event_log_storage = _Events(postgres_url)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage.optimize_for_webserver(STATEMENT_SECONDS * 1000, RECYCLE_SECONDS, OVERFLOW)

    @classmethod
    def from_config_value(  # type: ignore[override]  # as in the class above
        cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig
    ) -> "LastingStorage":
        return cls(pg_url_from_config(config_value), inst_data)


def _alive(connection: Any, *_: object) -> None:
    """A connection that PostgreSQL closed (it was restarted) is replaced before anybody sees it.

    Of Dagster's: pools of our own, with asyncpg, are of the same class and look after themselves.
    """
    if not isinstance(connection, extensions.connection):
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except Error as error:
        raise DisconnectionError(str(error)) from error


event.listen(QueuePool, "checkout", _alive)
