"""Every topic, queue family and bucket of the platform, in one place.

Adding one is adding an entry here: provisioning, AsyncAPI, retention, the data map and the docs
tables are generated from this registry, and a test fails on anything that exists but is not listed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

_PLACE = re.compile(r"\{[a-z]+\}")


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the event log (key rule: what orders the records of one key)."""

    name: str
    partitions: int
    retention: timedelta
    key: str
    payload: str
    """Name of the contract in `core.contracts`."""
    purged: bool = False
    """True where records go before the retention ends, once they are proven to have landed."""
    lossy: bool = False
    """True where producers may drop under pressure. Never for what is billed or audited."""
    max_record_bytes: int = 1_000_000


LADDER = (timedelta(seconds=10), timedelta(seconds=60), timedelta(seconds=300))
"""Pauses before the second, third and fourth attempt; then the message goes to the dead letters."""


@dataclass(frozen=True, slots=True)
class QueueFamily:
    """Queues of one kind: `{…}` in a name stands for what differs between them."""

    queue: str
    exchange: str
    kind: Literal["topic", "direct", "fanout"]
    """Kind of the exchange."""
    routing_key: str
    payload: str
    """Name of the contract in `core.contracts`."""
    instances: tuple[str, ...] = ()
    """What `{…}` stands for, of those that exist by now; nothing for a name without it."""
    ttl: timedelta | None = None
    """A message's whole life, from when it was first seen; without it a message waits for ever."""
    ladder: tuple[timedelta, ...] = LADDER
    single_active: bool = False
    """True where one consumer at a time works, so that the order is kept."""

    def names(self) -> tuple[str, ...]:
        """The queues that exist."""
        return tuple(self.name(instance) for instance in self.instances) or (
            () if "{" in self.queue else (self.queue,)
        )

    def name(self, instance: str = "") -> str:
        """The queue of one instance (`slack` of `channel.outbound.{type}`)."""
        return _PLACE.sub(instance, self.queue)

    def key(self, instance: str = "") -> str:
        """What the queue of one instance is bound with."""
        return _PLACE.sub(instance, self.routing_key)

    def covers(self, queue: str) -> bool:
        """True for the name of a queue of this family."""
        return re.fullmatch(r"[^.]+".join(map(re.escape, _PLACE.split(self.queue))), queue) is not None


def dead_letters_of(queue: str) -> str:
    """The queue that keeps what `queue` could not get done."""
    return f"{queue}.dlq"


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of the object store."""

    name: str
    content: str
    versioned: bool
    writers: tuple[str, ...]


def _topic(name: str, partitions: int, days: int, key: str, payload: str, **options: bool) -> Topic:
    return Topic(name, partitions, timedelta(days=days), key, payload, **options)


TOPICS: Mapping[str, Topic] = MappingProxyType(
    {
        topic.name: topic
        for topic in (
            _topic("agent.events", 8, 7, "conversation_id", "agent_event"),
            _topic("agent.tasks", 4, 7, "conversation_id", "agent_task"),
            _topic("usage.records", 4, 30, "tenant|subject", "usage_event", purged=True),
            _topic("audit.logs", 2, 90, "tenant", "audit_event"),
            _topic("service.logs", 2, 3, "service", "log_line", lossy=True),
        )
    }
)

_DAY = timedelta(days=1)

QUEUES: Mapping[str, QueueFamily] = MappingProxyType(
    {
        family.queue: family
        for family in (
            QueueFamily(
                "channel.inbound.{type}", "channel.inbound", "topic", "raw.{type}", "channel_message"
            ),
            QueueFamily("agent.inbound", "channel.inbound", "topic", "message.*", "channel_message"),
            QueueFamily(
                "channel.outbound.{type}", "channel.outbound", "direct", "{type}", "channel_message",
                single_active=True,
            ),
            QueueFamily(
                "notification.{kind}", "notification", "topic", "{kind}.#", "notification",
                instances=("email", "push"), ttl=_DAY,
            ),
            QueueFamily("document.index", "document", "direct", "index", "document_job"),
            QueueFamily("plugin.event", "plugin", "fanout", "", "plugin_event"),
        )
    }
)  # fmt: skip


def queue_names() -> tuple[str, ...]:
    """Every queue that exists by now, without those of retries and dead letters."""
    return tuple(name for family in QUEUES.values() for name in family.names())


def family_of(queue: str) -> QueueFamily:
    """Raises: KeyError, for a queue that no family covers."""
    for family in QUEUES.values():
        if family.covers(queue):
            return family
    raise KeyError(f"no queue family of core/topology.py covers {queue!r}")


BUCKETS: Mapping[str, Bucket] = MappingProxyType(
    {
        bucket.name: bucket
        for bucket in (
            Bucket("lake", "Delta tables: usage, audit", versioned=False, writers=("dagster",)),
            Bucket("knowledge", "sources of documents", versioned=True, writers=("memory", "agents")),
            Bucket(
                "derived",
                "text, chunks and embeddings of documents by content hash; rebuildable",
                versioned=False,
                writers=("dagster",),
            ),
            Bucket(
                "snapshots",
                "DuckDB files for analysts and the pointer to the latest",
                versioned=False,
                writers=("dagster",),
            ),
            Bucket(
                "invoices",
                "issued invoices and adjustments, byte for byte",
                versioned=True,
                writers=("billing", "dagster"),
            ),
        )
    }
)
