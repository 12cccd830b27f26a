"""The conformance suite on the tables of the embedded PostgreSQL."""

from collections.abc import AsyncIterator

import pytest

from core.eventlog.api import EventLog
from core.eventlog.postgres import PostgresEventLog
from core.settings import DatabaseSettings, EventLogSettings
from tests.conformance.eventlog.appending import Appending
from tests.conformance.eventlog.grouping import Grouping
from tests.conformance.eventlog.keeping import Keeping
from tests.conformance.eventlog.support import Backend
from tests.conformance.eventlog.tailing import Tailing


@pytest.fixture
def backend(postgres: DatabaseSettings) -> Backend:
    return Backend(
        EventLogSettings(eventlog_url="postgresql:"),
        postgres,
        session_timeout=1.5,
        open=lambda: PostgresEventLog(postgres, session_timeout=1.5),
    )


@pytest.fixture
async def log(backend: Backend) -> AsyncIterator[EventLog]:
    async with backend.open() as opened:
        yield opened


class TestPostgres(Appending, Keeping, Grouping, Tailing):
    """Every test comes from the suite."""
