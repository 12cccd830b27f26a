"""The work queue: on RabbitMQ or on PostgreSQL tables."""

from core.queue.api import PATIENCE, WorkQueue
from core.settings import DatabaseSettings, QueueSettings


def open_queue(
    settings: QueueSettings, database: DatabaseSettings, *, patience: float = PATIENCE
) -> WorkQueue:
    """The queue that the settings name; use it with `async with`.

    Args:
        patience: seconds that a call waits for a server that is away.

    Raises:
        ValueError: for an address that is neither `amqp://…` nor `postgresql:`.
    """
    # Imported when chosen: a process pays for one client only.
    if settings.queue_url.startswith("postgresql:"):
        from core.queue.postgres import PostgresQueue  # noqa: PLC0415

        return PostgresQueue(database, patience=patience)
    if settings.queue_url.startswith(("amqp://", "amqps://")):
        from core.queue.rabbitmq import RabbitQueue  # noqa: PLC0415

        return RabbitQueue(settings, patience=patience)
    raise ValueError(
        f"HEADRACE_QUEUE_URL is {settings.queue_url!r}; use `amqp://host:port[,host:port]/vhost` or `postgresql:`"
    )
