"""The event log: records in topics and partitions, on Apache Kafka or on PostgreSQL tables."""

from core.eventlog.api import EventLog
from core.settings import DatabaseSettings, EventLogSettings


def open_eventlog(settings: EventLogSettings, database: DatabaseSettings) -> EventLog:
    """The log that the settings name; use it with `async with`.

    Raises:
        ValueError: for an address that is neither `kafka://…` nor `postgresql:`.
    """
    # Imported when chosen: a process pays for one client only (aiokafka is 29 MB resident).
    if settings.eventlog_url.startswith("postgresql:"):
        from core.eventlog.postgres import PostgresEventLog  # noqa: PLC0415

        return PostgresEventLog(database)
    if settings.eventlog_url.startswith("kafka://"):
        from core.eventlog.kafka import KafkaEventLog  # noqa: PLC0415

        return KafkaEventLog(settings)
    raise ValueError(
        f"HEADRACE_EVENTLOG_URL is {settings.eventlog_url!r}; use `kafka://host:port[,host:port]` or `postgresql:`"
    )
