"""The event log on PostgreSQL tables (schema `eventlog`, role hr_system).

Appending raises the partition's `high` and inserts the records in one statement. The row lock is
held until commit, so offsets are dense and in order of commit; a rolled back append leaves no gap.
Appenders of one partition wait for each other: in production the relay appends, in batches.
"""

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import repeat
from typing import Final, Self

from core.eventlog import headers
from core.eventlog.api import (
    AppendUnknownError,
    Bounds,
    NewRecord,
    OffsetOutOfRangeError,
    Position,
    Record,
    RecordTooLargeError,
    Revoked,
    TopicChangedError,
    TopicInfo,
    UnknownTopicError,
)
from core.eventlog.partitioner import partition_for
from core.eventlog.postgres_connections import CHANNEL, PATIENCE, Connection, ConnectionLostError, Connections
from core.eventlog.postgres_group import PostgresGroupConsumer
from core.eventlog.postgres_tail import tail
from core.settings import DatabaseSettings
from core.topology import Topic

READ_RECORDS: Final = 10_000
READ_BYTES: Final = 16_000_000
"""A batch of `read` ends at the record that reaches either."""
_DELETE_RECORDS: Final = 20_000

_APPEND = f"""
with wanted as (
    select partition, n from unnest($2::int[], $3::int[]) as w (partition, n)
), locked as (
    select p.partition, w.n from partition p join wanted w using (partition)
    where p.topic_ref = $1 order by p.partition for update of p
), moved as (
    update partition p
    set high = p.high + l.n, last_ms = greatest(p.last_ms, (extract(epoch from clock_timestamp()) * 1000)::bigint)
    from locked l where p.topic_ref = $1 and p.partition = l.partition
    returning p.partition, p.high - l.n as start, p.last_ms
), stored as (
    insert into record (topic_ref, partition, off, ms, key, value, headers)
    select $1, m.partition, m.start + r.rank, m.last_ms, r.key, r.value, r.headers
    from unnest($4::int[], $5::int[], $6::bytea[], $7::bytea[], $8::bytea[])
        as r (partition, rank, key, value, headers)
    join moved m on m.partition = r.partition
)
select partition, start, pg_notify('{CHANNEL}', $9) from moved
"""

# One row of arrays: the client decodes those in a third of the time that rows take.
_READ = """
select min(off), max(off), count(*), array_agg(key order by off), array_agg(value order by off), array_agg(ms order by off),
    case when count(headers) > 0 then array_agg(headers order by off) end
from (
    select *, sum(octet_length(value)) over (order by off rows unbounded preceding) - octet_length(value) as before
    from (
        select off, ms, key, value, headers from record
        where topic_ref = $1 and partition = $2 and off >= $3 and off < $4 order by off limit $5
    ) r
) s where before < $6
"""

_DELETE = """
with first as (select min(off) as off from record where topic_ref = $1 and partition = $2 and off < $3)
delete from record r using first
where r.topic_ref = $1 and r.partition = $2 and r.off < least($3, first.off + $4)
"""

_EXPIRE = """
update partition p set low = greatest(p.low, e.off) from (
    select offset_for_time($1, $2, (extract(epoch from clock_timestamp()) * 1000)::bigint - $3) as off
) e where p.topic_ref = $1 and p.partition = $2 returning p.low
"""


@dataclass(frozen=True, slots=True)
class _Topic:
    ref: int
    id: uuid.UUID
    partitions: int
    max_record_bytes: int


class PostgresEventLog:
    """Implements `core.eventlog.api.EventLog`."""

    def __init__(
        self, settings: DatabaseSettings, *, session_timeout: float = 6.0, patience: float = PATIENCE
    ) -> None:
        self._connections = Connections(settings, patience)
        self._session_timeout = session_timeout
        self._topics: dict[str, _Topic] = {}

    async def __aenter__(self) -> Self:
        await self._connections.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connections.close()

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        async def work(connection: Connection) -> None:
            async with connection.transaction():
                for topic in sorted(topics, key=lambda t: t.name):
                    await self._ensure_topic(connection, topic)

        await self._connections.call(work)

    async def _ensure_topic(self, connection: Connection, topic: Topic) -> None:
        row = await connection.fetchrow(
            """insert into topic (name, partitions, retention_ms, max_record_bytes) values ($1, $2, $3, $4)
            on conflict (name) do update set retention_ms = excluded.retention_ms,
                max_record_bytes = excluded.max_record_bytes
            returning ref, partitions""",
            topic.name,
            topic.partitions,
            int(topic.retention.total_seconds() * 1000),
            topic.max_record_bytes,
        )
        if row["partitions"] != topic.partitions:
            raise TopicChangedError(
                f"topic {topic.name!r} has {row['partitions']} partitions, not {topic.partitions}; "
                "changing them moves keys: drain it and make it anew"
            )
        await connection.execute(
            "insert into partition (topic_ref, partition) select $1, generate_series(0, $2 - 1) on conflict do nothing",
            row["ref"],
            topic.partitions,
        )
        self._topics.pop(topic.name, None)

    async def delete_topic(self, name: str) -> None:
        async def work(connection: Connection) -> None:
            async with connection.transaction():
                ref = await connection.fetchval("select ref from topic where name = $1 for update", name)
                if ref is None:
                    raise UnknownTopicError(name)
                # Partitions first: their locks wait for appends under way, whose records go with the rest.
                await connection.execute("delete from partition where topic_ref = $1", ref)
                await connection.execute("delete from record where topic_ref = $1", ref)
                await connection.execute("delete from topic where ref = $1", ref)

        self._topics.pop(name, None)
        await self._connections.call(work)

    async def topic(self, name: str) -> TopicInfo:
        topic = await self._load(name)
        return TopicInfo(name, str(topic.id), topic.partitions)

    async def _load(self, name: str) -> _Topic:
        row = await self._connections.fetchrow(
            "select ref, id, partitions, max_record_bytes from topic where name = $1", name
        )
        if row is None:
            self._topics.pop(name, None)
            raise UnknownTopicError(name)
        self._topics[name] = found = _Topic(*row)
        return found

    async def _topic(self, name: str) -> _Topic:
        return self._topics.get(name) or await self._load(name)

    async def append(self, records: Sequence[NewRecord]) -> list[Position]:
        if not records:
            return []
        try:
            return await self._append(
                records, {name: await self._topic(name) for name in {r.topic for r in records}}
            )
        except _StaleTopicError:
            # Deleted since we looked; made anew perhaps, with other partitions and sizes.
            return await self._append(
                records, {name: await self._load(name) for name in {r.topic for r in records}}
            )

    async def append_in(self, connection: Connection, records: Sequence[NewRecord]) -> list[Position]:
        """As `append`, but part of the caller's transaction: visible when that commits.

        Args:
            connection: an asyncpg connection of role hr_system in a transaction, on the database of
                this log, with schema `eventlog` in its search path.
        """
        if not records:
            return []
        names = {record.topic for record in records}
        try:
            async with connection.transaction():
                return await _store(connection, records, {name: await self._topic(name) for name in names})
        except _StaleTopicError:
            async with connection.transaction():
                return await _store(connection, records, {name: await self._load(name) for name in names})

    async def _append(self, records: Sequence[NewRecord], topics: Mapping[str, _Topic]) -> list[Position]:
        async def work(connection: Connection) -> list[Position]:
            if len(topics) == 1:
                return await _store(connection, records, topics)
            async with connection.transaction():
                return await _store(connection, records, topics)

        try:
            return await self._connections.call(work, repeatable=False)
        except ConnectionLostError as error:
            raise AppendUnknownError(
                f"connection lost while appending {len(records)} records to {', '.join(sorted(topics))}; "
                "they may or may not be in the log: append them again"
            ) from error

    async def bounds(self, topic: str) -> dict[int, Bounds]:
        rows = await self._connections.fetch(
            "select p.partition, p.low, p.high from partition p join topic t on t.ref = p.topic_ref "
            "where t.name = $1 order by p.partition",
            topic,
        )
        if not rows:
            raise UnknownTopicError(topic)
        return {partition: Bounds(low, high) for partition, low, high in rows}

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        rows = await self._connections.fetch(
            "select p.partition, offset_for_time(t.ref, p.partition, $2) "
            "from partition p join topic t on t.ref = p.topic_ref where t.name = $1 order by p.partition",
            topic,
            timestamp_ms,
        )
        if not rows:
            raise UnknownTopicError(topic)
        return dict(rows)

    async def read(
        self, topic: str, partition: int, start: int, end: int
    ) -> AsyncGenerator[list[Record], None]:
        info = await self._load(topic)
        at = start
        while True:
            ((first, last, count, keys, values, times, columns),) = await self._connections.fetch(
                _READ, info.ref, partition, at, end, READ_RECORDS, READ_BYTES
            )
            # Offsets are dense: other rows than those asked for, or none, mean that they went away.
            whole = count > 0 and first == at and last - at + 1 == count
            if at == start or not whole:
                await self._check_range(topic, partition, at, end)
            if not whole:
                if start == end:
                    return
                raise TopicChangedError(
                    f"{topic}/{partition} changed while [{at}, {end}) was read; ask for its id again"
                )
            arrays = [repeat(topic), repeat(partition), range(at, at + count), keys, values, times]
            if columns is not None:
                arrays.append(map(headers.decode, columns))
            yield list(map(Record, *arrays))
            at += count
            if at >= end:
                return

    async def _check_range(self, topic: str, partition: int, start: int, end: int) -> None:
        bounds = (await self.bounds(topic)).get(partition)
        if bounds is None:
            raise ValueError(f"topic {topic!r} has no partition {partition}")
        for offset in (start, end):
            if not bounds.low <= offset <= bounds.high:
                raise OffsetOutOfRangeError(topic, partition, offset, bounds)

    async def tail(self, topic: str, positions: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        async def reference() -> int:
            return (await self._load(topic)).ref

        async with aclosing(tail(self._connections, topic, positions, reference)) as batches:
            async for batch in batches:
                yield batch

    async def purge(self, topic: str, before: Mapping[int, int]) -> dict[int, int]:
        for partition, offset in before.items():
            if offset < 0:
                raise ValueError(f"{topic}/{partition}: cannot purge up to {offset}; give a real offset")
        info = await self._load(topic)

        async def work(connection: Connection) -> dict[int, int]:
            async with connection.transaction():
                rows = await connection.fetch(
                    "select partition, low, high from partition where topic_ref = $1 and partition = any($2::int[]) "
                    "order by partition for update",
                    info.ref,
                    list(before),
                )
                found = {partition: Bounds(low, high) for partition, low, high in rows}
                for partition, offset in before.items():
                    if partition not in found:
                        raise ValueError(f"topic {topic!r} has no partition {partition}")
                    if offset > found[partition].high:
                        raise OffsetOutOfRangeError(topic, partition, offset, found[partition])
                lows = {partition: max(offset, found[partition].low) for partition, offset in before.items()}
                await connection.executemany(
                    "update partition set low = $3 where topic_ref = $1 and partition = $2",
                    [(info.ref, partition, low) for partition, low in lows.items()],
                )
                return lows

        lows = await self._connections.call(work)
        for partition, low in lows.items():
            await self._delete_below(info.ref, partition, low)
        return lows

    async def _delete_below(self, ref: int, partition: int, low: int) -> None:
        """Remove what `low` has hidden, in steps that hold no lock for long."""
        while True:
            done: str = await self._connections.execute(_DELETE, ref, partition, low, _DELETE_RECORDS)
            if done == "DELETE 0":
                return

    async def expire(self) -> None:
        partitions = await self._connections.fetch(
            "select t.ref, p.partition, t.retention_ms from partition p join topic t on t.ref = p.topic_ref"
        )
        for ref, partition, retention_ms in partitions:
            low = await self._connections.fetchval(_EXPIRE, ref, partition, retention_ms)
            if low is not None:
                await self._delete_below(ref, partition, low)

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        on_revoked: Revoked | None = None,
    ) -> PostgresGroupConsumer:
        return PostgresGroupConsumer(
            self._connections,
            topics=tuple(topics),
            group=group,
            from_start=from_start,
            on_revoked=on_revoked,
            session_timeout=self._session_timeout,
        )

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        rows = await self._connections.fetch(
            "select g.partition, g.next_off from group_partition g join topic t on t.ref = g.topic_ref "
            "where g.group_name = $1 and t.name = $2 and g.next_off is not null order by g.partition",
            group,
            topic,
        )
        return dict(rows)


class _StaleTopicError(Exception):
    """The cached topic is not there any more."""


async def _store(
    connection: Connection, records: Sequence[NewRecord], topics: Mapping[str, _Topic]
) -> list[Position]:
    """Append to each topic in the order of their ids, so that two appenders cannot wait for each other."""
    batches = {name: _Batch(name, topic) for name, topic in topics.items()}
    placed = [batches[record.topic].add(record) for record in records]
    for batch in sorted(batches.values(), key=lambda batch: batch.topic.ref):
        await batch.store(connection)
    return [
        Position(record.topic, partition, batches[record.topic].starts[partition] + rank)
        for record, (partition, rank) in zip(records, placed, strict=True)
    ]


class _Batch:
    """Records of one topic on their way into it, as columns."""

    def __init__(self, name: str, topic: _Topic) -> None:
        self.name, self.topic = name, topic
        self.starts: dict[int, int] = {}
        self._counts = [0] * topic.partitions
        self._partitions: list[int] = []
        self._ranks: list[int] = []
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._headers: list[bytes | None] = []

    def add(self, record: NewRecord) -> tuple[int, int]:
        """Partition of the record and its rank among this batch's records of that partition."""
        if (size := headers.record_size(record)) > self.topic.max_record_bytes:
            raise RecordTooLargeError(
                f"a record of {size} bytes for {self.name!r} is above its limit of {self.topic.max_record_bytes}; "
                "nothing of this batch was appended"
            )
        partition = partition_for(record.key, self.topic.partitions)
        rank = self._counts[partition]
        self._counts[partition] = rank + 1
        self._partitions.append(partition)
        self._ranks.append(rank)
        self._keys.append(record.key)
        self._values.append(record.value)
        self._headers.append(headers.encode(record.headers))
        return partition, rank

    async def store(self, connection: Connection) -> None:
        counts = {partition: count for partition, count in enumerate(self._counts) if count}
        rows = await connection.fetch(
            _APPEND,
            self.topic.ref,
            list(counts),
            list(counts.values()),
            self._partitions,
            self._ranks,
            self._keys,
            self._values,
            self._headers,
            self.name,
        )
        if len(rows) != len(counts):
            raise _StaleTopicError(self.name)
        self.starts = {row[0]: row[1] for row in rows}
