"""Consumer groups on the tables of `eventlog`: partitions are leased to members.

Each member keeps itself alive, takes free partitions up to its fair share and gives up what is above
it (after its owner has finished and committed). Every change locks the group's row for the length of
one function call and raises the group's generation; who decided on an older one decides again. A
change of hands raises the partition's epoch; a commit with an older epoch is dropped. Members whose
time has run out lose everything at the next member's sync.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from core.eventlog import headers
from core.eventlog.api import (
    Bounds,
    LogUnavailableError,
    OffsetOutOfRangeError,
    Record,
    Revoked,
    TopicPartition,
    UnknownTopicError,
)
from core.eventlog.postgres_connections import Connections
from core.eventlog.shares import fair_shares
from core.log import Logger
from core.tasks import cancel

_log = Logger(__name__)

FETCH: Final = """
select w.rank, p.low, p.high, r.off, r.ms, r.key, r.value, r.headers
from unnest($1::int[], $2::int[], $3::bigint[]) with ordinality as w (topic_ref, partition, off, rank)
join partition p on p.topic_ref = w.topic_ref and p.partition = w.partition
left join lateral (
    select * from (
        select s.*, sum(octet_length(s.value)) over (order by s.off rows unbounded preceding)
            - octet_length(s.value) as before
        from (
            select off, ms, key, value, headers from record s
            where s.topic_ref = w.topic_ref and s.partition = w.partition and s.off >= w.off
            order by s.off limit $4
        ) s
    ) t where t.before < $5 and w.off between p.low and p.high
) r on true
"""
_FETCH_BYTES: Final = 4_000_000
_ASK_SECONDS: Final = 5.0
"""A reader that has read everything asks again after so long even without a notice."""
_AWAY_PAUSE: Final = 0.2

_BEAT: Final = """
with beat as (
    update group_member set expires_at = clock_timestamp() + make_interval(secs => $3)
    where group_name = $1 and member = $2 returning 1
)
select g.generation,
    (select count(*) from beat) = 1
    and not exists (select from group_member m
                    where m.group_name = $1 and m.member <> $2 and m.expires_at < clock_timestamp()) as calm,
    array(select t.ref from topic t where t.name = any($4::text[]) order by t.ref) as refs
from consumer_group g where g.name = $1
"""

_COMMIT: Final = """
update group_partition g set next_off = w.off, committed_at = clock_timestamp()
from unnest($3::int[], $4::int[], $5::bigint[], $6::bigint[]) as w (topic_ref, partition, epoch, off)
where g.group_name = $1 and g.member = $2 and g.topic_ref = w.topic_ref and g.partition = w.partition
    and g.epoch = w.epoch
returning g.topic_ref, g.partition
"""

_MEMBERS: Final = """
select g.generation, m.member, m.topics from consumer_group g join group_member m on m.group_name = g.name
where g.name = $1
"""

_PARTITIONS: Final = """
select c.generation, t.name, g.topic_ref, g.partition, g.member, g.epoch,
    coalesce(g.next_off, case when $3 then p.low else p.high end) as position
from group_partition g join consumer_group c on c.name = g.group_name
join topic t on t.ref = g.topic_ref
join partition p on p.topic_ref = g.topic_ref and p.partition = g.partition
where g.group_name = $1 and t.name = any($2::text[]) order by t.ref, g.partition
"""


@dataclass(slots=True)
class _Lease:
    """A partition that this member holds, and where it reads next."""

    topic: str
    ref: int
    partition: int
    epoch: int
    position: int


class PostgresGroupConsumer:
    """Implements `core.eventlog.api.GroupConsumer`."""

    def __init__(
        self,
        connections: Connections,
        *,
        topics: tuple[str, ...],
        group: str,
        from_start: bool,
        on_revoked: Revoked | None,
        session_timeout: float,
    ) -> None:
        self._connections, self._topics, self._group = connections, topics, group
        self._from_start, self._on_revoked, self._session_timeout = from_start, on_revoked, session_timeout
        self._member = uuid.uuid4()
        self._leases: dict[TopicPartition, _Lease] = {}
        self._paused: frozenset[TopicPartition] = frozenset()
        self._revoking: frozenset[TopicPartition] = frozenset()
        self._generation = -1
        self._refs: list[int] = []
        self._news = asyncio.Event()
        self._drained, self._away, self._ask_again, self._turn = False, False, 0.0, 0
        self._regroup = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        found = await self._connections.fetch(
            "select name from topic where name = any($1::text[])", list(self._topics)
        )
        for topic in self._topics:
            if topic not in {row[0] for row in found}:
                raise UnknownTopicError(topic)
        self._connections.subscribe(self._wake)
        await self._sync()
        self._heart = asyncio.create_task(self._beat(), name=f"eventlog-group-{self._group}")

    async def close(self) -> None:
        self._connections.unsubscribe(self._wake)
        if self._heart is None:
            return
        await cancel(self._heart)
        self._heart = None
        self._leases.clear()

        # A log that is away at this moment lets the membership run out instead.
        with contextlib.suppress(LogUnavailableError):
            await self._release(None, None, patience=2.0)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._leases) - self._revoking

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused |= partitions

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused -= partitions
        self._news.set()

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        for key, offset in offsets.items():
            if offset < 0:
                raise ValueError(f"{key[0]}/{key[1]}: cannot seek to {offset}")
            if key in self._leases:
                self._leases[key].position = offset
        self._news.set()

    async def poll(self, max_records: int, timeout: float) -> list[Record]:  # noqa: ASYNC109 - no error when it passes
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            # Where nothing was left and no notice came, there is nothing to ask for.
            if not self._drained or self._news.is_set() or loop.time() >= self._ask_again:
                self._news.clear()
                self._drained = False
                records = await self._fetch(max_records)
                self._drained = not records and not self._away
                self._ask_again = loop.time() + _ASK_SECONDS
                if records:
                    return records
            left = min(deadline, self._ask_again) - loop.time()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._news.wait()
            if loop.time() >= deadline:
                return []

    async def _fetch(self, max_records: int) -> list[Record]:
        wanted = [lease for key, lease in self._leases.items() if key not in self._paused | self._revoking]
        if not wanted:
            return []
        # A poll for fewer records than there are partitions must not starve the last ones.
        self._turn = (self._turn + 1) % len(wanted)
        wanted = wanted[self._turn :] + wanted[: self._turn]
        positions = [lease.position for lease in wanted]
        share = max(max_records // len(wanted), 1)
        columns = ([lease.ref for lease in wanted], [lease.partition for lease in wanted], positions)
        try:
            rows = await self._connections.fetch(FETCH, *columns, share, _FETCH_BYTES, patience=0)
        except LogUnavailableError as error:
            if not self._away:
                _log.warn("event log away, the consumer waits", group=self._group, reason=str(error))
            self._away = True
            await asyncio.sleep(_AWAY_PAUSE)
            return []
        self._away = False
        records: list[Record] = []
        refused: OffsetOutOfRangeError | None = None
        for rank, low, high, off, ms, key, value, column in rows:
            lease = wanted[rank - 1]
            if off is None:
                if not low <= lease.position <= high and self._holds(lease):
                    at = (lease.topic, lease.partition, lease.position)
                    refused = OffsetOutOfRangeError(*at, Bounds(low, high))
                continue
            # Taken away or moved by seek while the answer was under way.
            if len(records) == max_records or off != lease.position or not self._holds(lease):
                continue
            lease.position = off + 1
            records.append(
                Record(
                    lease.topic,
                    lease.partition,
                    off,
                    key,
                    value,
                    ms,
                    headers.decode(column) if column else (),
                )
            )
        if refused is not None and not records:
            raise refused
        return records

    def _holds(self, lease: _Lease) -> bool:
        return self._leases.get((lease.topic, lease.partition)) is lease

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> frozenset[TopicPartition]:
        for key, offset in offsets.items():
            if offset < 0:
                raise ValueError(f"{key[0]}/{key[1]}: cannot commit {offset}")
        held = [(self._leases[key], offset) for key, offset in offsets.items() if key in self._leases]
        stored: frozenset[TopicPartition] = frozenset()
        if held:
            rows = await self._connections.fetch(
                _COMMIT,
                self._group,
                self._member,
                [lease.ref for lease, _ in held],
                [lease.partition for lease, _ in held],
                [lease.epoch for lease, _ in held],
                [offset for _, offset in held],
            )
            names = {lease.ref: lease.topic for lease, _ in held}
            stored = frozenset((names[ref], partition) for ref, partition in rows)
        fenced = frozenset(offsets) - stored
        if fenced:
            self._regroup.set()
        return fenced

    def _wake(self, payload: str) -> None:
        if payload == f"group:{self._group}":
            self._regroup.set()
        elif payload == "" or payload in self._topics:
            self._news.set()

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._session_timeout / 3):
                    await self._regroup.wait()
            try:
                if self._regroup.is_set() or not await self._calm():
                    self._regroup.clear()
                    await self._sync()
            except LogUnavailableError as error:
                self._regroup.set()
                _log.warn("event log away, the group member waits", group=self._group, reason=str(error))
            except Exception as error:
                # The heart must not stop: without it this member would read nothing, silently, for ever.
                self._regroup.set()
                _log.error("group sync failed, trying again", exc=error, group=self._group)
                await asyncio.sleep(1)

    async def _calm(self) -> bool:
        """Say that we live; False when the group needs a sync."""
        row = await self._connections.fetchrow(
            _BEAT, self._group, self._member, self._session_timeout, list(self._topics), patience=2.0
        )
        return row is not None and row[0] == self._generation and row[1] and row[2] == self._refs

    async def _sync(self) -> None:
        surplus = await self._arrange()
        while surplus is None:
            surplus = await self._arrange()
        if surplus:
            await self._give_up(surplus)

    async def _arrange(self) -> frozenset[TopicPartition] | None:
        """Take our share of the partitions.

        Returns:
            What we hold above it; None where the group changed meanwhile, which asks for another try.
        """
        generation = await self._connections.fetchval(
            "select group_join($1, $2, $3, $4)",
            self._group,
            self._member,
            list(self._topics),
            self._session_timeout,
        )
        members = await self._connections.fetch(_MEMBERS, self._group)
        # All that the group reads: its members must come to the same shares though they read different topics.
        topics = sorted({topic for member in members for topic in member["topics"]})
        rows = await self._connections.fetch(_PARTITIONS, self._group, topics, self._from_start)
        if any(row["generation"] != generation for row in (*members, *rows)):
            return None
        shares = fair_shares(
            {(row["name"], row["partition"]): row["member"] for row in rows},
            {member["member"]: member["topics"] for member in members},
        )
        mine = [row for row in rows if row["name"] in self._topics]
        wanted = [
            row
            for row in mine
            if row["member"] is None and shares[row["name"], row["partition"]] == self._member
        ]
        if wanted:
            generation = await self._take(generation, wanted)
            if generation is None:
                return None
        self._generation, self._refs = generation, sorted({row["topic_ref"] for row in mine})
        held = [(row, row["epoch"]) for row in mine if row["member"] == self._member]
        self._adopt(held + [(row, row["epoch"] + 1) for row in wanted])
        return frozenset(
            (row["name"], row["partition"])
            for row, _ in held
            if shares[row["name"], row["partition"]] != self._member
        )

    async def _take(self, generation: int, wanted: list[Any]) -> int | None:
        taken: int | None = await self._connections.fetchval(
            "select group_take($1, $2, $3, $4, $5, $6)",
            self._group,
            self._member,
            generation,
            [row["topic_ref"] for row in wanted],
            [row["partition"] for row in wanted],
            # A group that starts at the end remembers where that was: its next member must not start later.
            [None if self._from_start else row["position"] for row in wanted],
        )
        return taken

    def _adopt(self, rows: list[tuple[Any, int]]) -> None:
        leases: dict[TopicPartition, _Lease] = {}
        for row, epoch in rows:
            key = (row["name"], row["partition"])
            mine = self._leases.get(key)
            if mine is None or (mine.ref, mine.epoch) != (row["topic_ref"], epoch):
                mine = _Lease(row["name"], row["topic_ref"], row["partition"], epoch, row["position"])
            leases[key] = mine
        self._leases = leases
        self._news.set()

    async def _give_up(self, surplus: frozenset[TopicPartition]) -> None:
        """Stop reading, let the owner finish (bounded), then free the partitions for others."""
        self._revoking = surplus
        try:
            if self._on_revoked is not None:
                try:
                    async with asyncio.timeout(self._session_timeout / 2):
                        await self._on_revoked(surplus)
                except TimeoutError:
                    _log.warn("work in flight did not end before its partitions went on", group=self._group)
                except Exception as error:
                    _log.error(
                        "handing over partitions failed, they are read again", exc=error, group=self._group
                    )
            leases = [self._leases[key] for key in surplus if key in self._leases]
            await self._release([lease.ref for lease in leases], [lease.partition for lease in leases])
            for key in surplus:
                self._leases.pop(key, None)
        finally:
            self._revoking = frozenset()

    async def _release(
        self, refs: list[int] | None, partitions: list[int] | None, patience: float | None = None
    ) -> None:
        await self._connections.fetchrow(
            "select group_release($1, $2, $3, $4)",
            self._group,
            self._member,
            refs,
            partitions,
            patience=patience,
        )
