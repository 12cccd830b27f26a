"""The seam of the event log: what Apache Kafka and our PostgreSQL tables both keep.

A topic has partitions; a partition is a dense sequence of records from 0 (no gaps: end minus start
is the number of records ever appended, which is what conservation counts on). Retry, dead letters,
inbox and outbox are written once, above this seam, in `core.messaging`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from core.topology import Topic


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to append; records of one key keep their order. The empty key is a key like any other."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as it stands in the log."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp_ms: int
    """When the log took it (the log's clock, not the sender's), milliseconds since 1970 UTC."""
    headers: tuple[tuple[str, bytes], ...] = ()


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where an appended record stands."""

    topic: str
    partition: int
    offset: int


TopicPartition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as it exists now. A topic deleted and made anew has another `id` and starts at 0."""

    name: str
    id: str
    """UUID in its canonical text form."""
    partitions: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """`low` is the first offset that can still be read, `high` the offset that comes next."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Slice:
    """A bounded piece of a topic: partition to [start, end)."""

    topic: str
    topic_id: str
    ranges: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """How many records the slice holds; offsets are dense, so it is known before reading."""
        return sum(end - start for start, end in self.ranges.values())


class EventLogError(Exception):
    """Base of what the log refuses; the message says what, which and what to do."""


class UnknownTopicError(EventLogError):
    """The topic does not exist. Topics are made from `core.topology`, never by a producer."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic!r} does not exist; list it in core/topology.py and provision")
        self.topic = topic


class TopicChangedError(EventLogError):
    """The topic is not the one that was meant: made anew (another id), or of another shape."""


class RecordTooLargeError(EventLogError):
    """A record is above the topic's `max_record_bytes`; none of the batch was appended."""


class LogUnavailableError(EventLogError):
    """The log could not be reached in time. Nothing was changed; try again."""


class AppendUnknownError(EventLogError):
    """The connection broke before the answer: the records may stand in the log or not.

    Appending them again may double them (consumers drop doubles by the record's identity), never
    leave a gap.
    """


class OffsetOutOfRangeError(EventLogError):
    """A read below the low or above the high watermark: never answered by other records."""

    def __init__(self, topic: str, partition: int, offset: int, bounds: Bounds) -> None:
        super().__init__(
            f"{topic}/{partition}: offset {offset} is outside [{bounds.low}, {bounds.high}]; "
            "the records were purged or expired, or the topic was made anew"
        )
        self.topic, self.partition, self.offset, self.bounds = topic, partition, offset, bounds


Revoked = Callable[[frozenset[TopicPartition]], Awaitable[None]]
"""Called before partitions go to another member: finish what is in flight and commit it. Bounded
by the consumer's session time-out; not called for partitions that were lost already."""


class GroupConsumer(Protocol):
    """One member of a consumer group.

    `poll` gives records of the partitions this member holds now; `commit` stores the offsets that
    come *next*. A commit for a partition that was taken away meanwhile is dropped (fenced), so the
    new holder reads those records again: at least once, never skipped. While the log is away
    `poll` gives nothing and the member comes back by itself.
    """

    async def start(self) -> None:
        """Join the group. Partitions arrive during the following polls.

        Raises: UnknownTopicError, LogUnavailableError.
        """
        ...

    async def poll(self, max_records: int, timeout: float) -> list[Record]:  # noqa: ASYNC109 - no error when it passes
        """Up to `max_records` of the partitions held and not paused; empty after `timeout` seconds.

        Raises: OffsetOutOfRangeError where the position was purged or expired; nothing is skipped by
        itself: `seek` to `error.bounds.low` to go on there.
        """
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> frozenset[TopicPartition]:
        """Store next offsets; returns the partitions whose commit was fenced.

        Raises: LogUnavailableError (commit again later, or read those records again).
        """
        ...

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on reading at these offsets (partitions not held are left out); commits nothing."""
        ...

    def assignment(self) -> frozenset[TopicPartition]: ...
    def pause(self, partitions: frozenset[TopicPartition]) -> None: ...
    def resume(self, partitions: frozenset[TopicPartition]) -> None: ...

    async def close(self) -> None:
        """Leave the group: others take the partitions at once. Commits nothing."""
        ...


class EventLog(Protocol):
    """The log itself. `async with` starts and closes it.

    Every call may raise LogUnavailableError, after it has tried for some seconds.
    """

    async def __aenter__(self) -> "EventLog": ...
    async def __aexit__(self, *exc: object) -> None: ...

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """Create what is missing and bring retention and sizes in line. Never deletes.

        Raises: TopicChangedError where a topic exists with another number of partitions (growing
        it would move keys and break their order).
        """
        ...

    async def delete_topic(self, name: str) -> None:
        """Raises: UnknownTopicError."""
        ...

    async def topic(self, name: str) -> TopicInfo:
        """Raises: UnknownTopicError."""
        ...

    async def append(self, records: Sequence[NewRecord]) -> list[Position]:
        """Append and return positions in the order given, once all are durable (acks=all).

        Raises: UnknownTopicError, RecordTooLargeError, LogUnavailableError (nothing appended for
        these), AppendUnknownError.
        """
        ...

    async def bounds(self, topic: str) -> dict[int, Bounds]:
        """Raises: UnknownTopicError."""
        ...

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        """First offset of each partition at or after that time; the high watermark where none."""
        ...

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[list[Record], None]:
        """Exactly the records of [start, end), in batches, without a group.
        Close it with `aclose()` where it is left early.

        Raises: OffsetOutOfRangeError, UnknownTopicError.
        """
        ...

    def tail(self, topic: str, positions: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        """Records of these partitions from these offsets on, then new ones a few milliseconds after
        their append, for ever; without a group. Close it with `aclose()`.

        In order within a partition, none left out, none twice. While the log is away it gives
        nothing and goes on by itself.

        Raises: OffsetOutOfRangeError where a position is not (any more) in the log, UnknownTopicError,
        TopicChangedError where the topic was made anew (found out within seconds), ValueError for a
        partition that is not there.
        """
        ...

    async def purge(self, topic: str, before: Mapping[int, int]) -> dict[int, int]:
        """Delete records below the given offsets; returns the low watermark of each of these partitions.

        Raises: ValueError for a negative offset (-1 means "all" to Kafka) or a partition that is not
        there, OffsetOutOfRangeError for an offset above the high watermark. Nothing is deleted then.
        """
        ...

    async def expire(self) -> None:
        """Delete what is older than its topic's retention. Kafka does it by itself, tables need the call."""
        ...

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        on_revoked: Revoked | None = None,
    ) -> GroupConsumer:
        """A member of a group; `from_start` says where a partition begins that was never committed."""
        ...

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Next offset of each partition that the group has committed; absent where it never did."""
        ...
