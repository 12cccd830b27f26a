"""Traces and metrics of a process.

Metric names are fixed by the design, so that the alert rules need no rewrite: an edge of each
histogram lies exactly at its alert's threshold. Every service shows them at `/metrics`.
"""

from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import Counter, Gauge, Histogram

HTTP_REQUEST_DURATION: Final = Histogram(
    "http_request_duration_seconds",
    "Time from the request's first byte to the answer's last",
    ("service", "route", "code"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
)
ASYNCIO_TASKS: Final = Gauge("python_asyncio_tasks", "Tasks of the process's event loop when it was asked")
AGENT_RUN_DURATION: Final = Histogram(
    "agent_run_duration_seconds",
    "Time of an agent run from start to its terminal event",
    ("outcome",),
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900),
)
DB_QUERY_DURATION: Final = Histogram(
    "db_query_duration_seconds",
    "Time of one SQL statement as the client sees it",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DB_POOL_CONNECTIONS: Final = Gauge(
    "db_pool_connections",
    "Connections of this process's pools: `in_use`, `idle`, and `max` that they may grow to",
    ("state",),
)
CONSUMER_LAG_RECORDS: Final = Gauge(
    "consumer_lag_records",
    "Records that a group has not finished, measured outside the consumer",
    ("source", "group"),
)
CONSUMER_LAG_SECONDS: Final = Gauge(
    "consumer_lag_seconds",
    "Age of the oldest record that a group has not finished, measured outside the consumer",
    ("source", "group"),
)
CONSUMER_EXPECTED: Final = Gauge(
    "consumer_expected", "1 where this process is expected to consume the source", ("source", "group")
)
CONSUMER_CONSUMING: Final = Gauge(
    "consumer_consuming", "1 where this process is consuming the source now", ("source", "group")
)
CONSUMER_FAILURES: Final = Counter(
    "consumer_failures", "Attempts of a handler that failed", ("source", "group")
)
OUTBOX_RELAYED: Final = Counter("outbox_relayed_records", "Records appended to the event log", ("topic",))
OUTBOX_DEAD: Final = Counter(
    "outbox_dead_records", "Records that the event log refused for good", ("topic", "code")
)
OUTBOX_DEAD_WAITING: Final = Gauge(
    "outbox_dead_waiting", "Dead records that wait for a person to replay or drop them"
)
OUTBOX_FAILURES: Final = Counter(
    "outbox_relay_failures", "Attempts to relay that failed and were repeated", ("error",)
)
OUTBOX_LEADING: Final = Gauge("outbox_relay_leading", "1 where this process holds the relay's lease")
QUEUE_RELAYED: Final = Counter(
    "queue_outbox_relayed_messages", "Messages taken from their outbox", ("family",)
)
QUEUE_RELAY_LEADING: Final = Gauge(
    "queue_relay_leading", "1 where this process holds the lease of the queue's relay"
)
QUEUE_DEAD: Final = Counter("queue_dead_letters", "Messages given up after their last attempt", ("queue",))
QUEUE_DEAD_WAITING: Final = Gauge(
    "queue_dead_letters_waiting", "Dead letters that wait for a person to redrive or drop them", ("queue",)
)
USAGE_DAMAGED_OBJECTS: Final = Gauge(
    "usage_damaged_objects",
    "Objects of the lake's usage_events that are lost or changed, as the last look at each found",
)
USAGE_MISSING_EVENTS: Final = Gauge(
    "usage_missing_events", "Events that producers said they had sent and that have not landed"
)
USAGE_OPEN_CHECKPOINTS: Final = Gauge(
    "usage_open_checkpoints", "Checkpoints of producers that differ from what has landed", ("state",)
)
OUTBOX_LATENCY: Final = Histogram(
    "outbox_relay_latency_seconds",
    "Time from the insert into the outbox to the durable append",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)


def configure_tracing(service: str) -> None:
    """Give this process a tracer provider, once. It exports nothing by itself: ids in logs and headers
    are what everything else relies on; an exporter is added to the provider where one is wanted."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider(resource=Resource({"service.name": service})))
