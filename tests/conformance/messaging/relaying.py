"""The relay on an adapter: order per key, nothing lost, one lease, poison parked. Modules subclass `RelaySuite`."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy import text

from core.database import Database, tenant
from core.eventlog.api import AppendUnknownError, EventLog, NewRecord, Record
from core.ids import new_id
from core.messaging import outbox
from core.messaging.relay import LEASE, OutboxRelay
from core.settings import DatabaseSettings
from core.topology import TOPICS

TOPIC = "agent.events"


@asynccontextmanager
async def relaying(relay: OutboxRelay) -> AsyncIterator[OutboxRelay]:
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await task


async def write(database: Database, org: str, values: list[bytes], key: bytes = b"key") -> None:
    async with database.writer() as connection:
        await outbox.enqueue(connection, [NewRecord(TOPIC, key, value) for value in values], org)


async def waiting(database: Database, org: str) -> int:
    """Rows of one organisation: services that other tests started may write theirs meanwhile."""
    async with database.writer() as connection:
        rows = await connection.execute(
            text("select count(*) from outbox where tenant_id = :org"), {"org": org}
        )
    return int(rows.scalar_one())


async def arrived(log: EventLog, marker: str, count: int, topic: str = TOPIC) -> list[Record]:
    """Wait for `count` different records whose key starts with `marker`; all of them, partition by partition.

    Where a batch may come again, repetitions do not count: the last record may still be on its way.
    """
    found: list[Record] = []
    async with asyncio.timeout(120):
        while len({(record.key, record.value) for record in found}) < count:
            found = []
            for partition, bounds in (await log.bounds(topic)).items():
                if bounds.low < bounds.high:
                    async for batch in log.read(topic, partition, bounds.low, bounds.high):
                        found += [record for record in batch if record.key.startswith(marker.encode())]
            await asyncio.sleep(0.02)
    return found


async def drained(relay: OutboxRelay) -> None:
    """As `drain`, tried again as `run` does: a busy broker does not lead at once what was made a moment ago."""
    async with asyncio.timeout(120):
        while True:
            try:
                await relay.drain()
            except AppendUnknownError:
                await asyncio.sleep(0.1)
            else:
                return


class RelaySuite:
    """Subclasses give the fixture `log`: a started event log with the topics of `core.topology`."""

    exactly_once: bool
    """Whether even a relay that dies sends nothing twice."""

    def told(self, records: list[Record]) -> list[bytes]:
        """Their values; each once where an append whose answer is lost comes again."""
        values = [record.value for record in records]
        return values if self.exactly_once else [*dict.fromkeys(values)]

    @pytest.mark.parametrize("transactional", [True, False])
    async def test_order_per_key_and_nothing_lost(
        self, postgres: DatabaseSettings, app_database: Database, log: EventLog, transactional: bool
    ) -> None:
        org = new_id("org")

        async def worker(number: int) -> None:
            for step in range(40):
                await write(
                    app_database,
                    org,
                    [f"{step}.{part}".encode() for part in range(3)],
                    f"{org}|{number}".encode(),
                )

        # Small batches, and no look without a notification: the relay must be woken each time.
        relay = OutboxRelay(postgres, log, transactional=transactional, batch_records=7, poll_seconds=3600)
        async with relaying(relay):
            with tenant(org):
                await asyncio.gather(*(worker(number) for number in range(4)))
            records = await arrived(log, org, 4 * 40 * 3)
        by_key = defaultdict(list)
        for record in records:
            by_key[record.key].append(record.value)
        expected = [f"{step}.{part}".encode() for step in range(40) for part in range(3)]
        # An append whose answer is lost comes again where the log is another server.
        assert [[*dict.fromkeys(values)] for values in by_key.values()] == [expected] * 4
        if self.exactly_once:
            assert list(by_key.values()) == [expected] * 4
        assert relay.state == "stopped"
        assert relay.trouble == ""

    async def test_a_batch_is_bounded_in_bytes(
        self, postgres: DatabaseSettings, app_database: Database, log: EventLog
    ) -> None:
        org = new_id("org")
        with tenant(org):
            await write(app_database, org, [bytes([number]) * 900_000 for number in range(5)], org.encode())
        await drained(OutboxRelay(postgres, log, batch_bytes=1_000_000))
        assert [value[0] for value in self.told(await arrived(log, org, 5))] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("transactional", [True, False])
    async def test_poison_is_parked_and_the_rest_goes_on(
        self,
        postgres: DatabaseSettings,
        app_database: Database,
        system_database: Database,
        log: EventLog,
        transactional: bool,
    ) -> None:
        org = new_id("org")
        late = new_id("late")
        bad = [(late, b"lost"), (late, b"too"), (TOPIC, b"x" * 1_000_001)]
        with tenant(org):
            await write(app_database, org, [b"1", b"2"], org.encode())
            async with app_database.writer() as connection:
                for topic, value in bad:
                    await connection.execute(
                        text(
                            "insert into outbox (tenant_id, topic, key, value) values (:tenant, :topic, :key, :value)"
                        ),
                        {"tenant": org, "topic": topic, "key": org.encode(), "value": value},
                    )
            await write(app_database, org, [b"3"], org.encode())
        relay = OutboxRelay(postgres, log, transactional=transactional)
        await drained(relay)
        assert self.told(await arrived(log, org, 3)) == [b"1", b"2", b"3"]
        async with system_database.writer() as connection:
            dead = [record for record in await outbox.dead(connection, 100_000) if record.tenant_id == org]
            assert sorted((record.topic, record.code, record.size) for record in dead) == [
                (TOPIC, "too_large", 1_000_001), (late, "unknown_topic", 3), (late, "unknown_topic", 4)
            ]  # fmt: skip
            assert all(record.reason for record in dead)

        # Two can be sent after all, once their topic exists; one never.
        mendable = [record.id for record in dead if record.code == "unknown_topic"]
        await log.ensure_topics([replace(TOPICS[TOPIC], name=late)])
        async with system_database.writer() as connection:
            assert await outbox.replay(connection, mendable) == 2
            assert await outbox.drop(connection, [record.id for record in dead]) == 1
        await drained(relay)
        assert self.told(await arrived(log, org, 2, late)) == [b"lost", b"too"]
        assert await waiting(system_database, org) == 0

    async def test_one_relay_works_and_another_takes_over(
        self, postgres: DatabaseSettings, app_database: Database, system_database: Database, log: EventLog
    ) -> None:
        org = new_id("org")
        first, second = (OutboxRelay(postgres, log, poll_seconds=0.05) for _ in range(2))
        async with relaying(first), relaying(second):
            async with asyncio.timeout(120):
                while {first.state, second.state} != {"leading", "standby"}:  # noqa: ASYNC110 - a state
                    await asyncio.sleep(0.01)
            with pytest.raises(RuntimeError, match="another outbox relay"):
                await OutboxRelay(postgres, log).drain()
            with tenant(org):
                for step in range(60):
                    await write(app_database, org, [str(step).encode()], org.encode())
                    if step in (20, 40):  # the leader's connection dies, with whatever it was doing
                        async with system_database.writer() as connection:
                            await connection.execute(
                                text(
                                    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted "
                                    "and classid = :high and objid = :low"
                                ),
                                {"high": LEASE >> 32, "low": LEASE & 0xFFFF_FFFF},
                            )
            records = await arrived(log, org, 60)
            assert first.state != second.state
        values = [int(record.value) for record in records]
        if self.exactly_once:
            assert values == [*range(60)]
        # Otherwise a batch may come again, whole and in order.
        assert sorted(set(values)) == [*range(60)]
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(values))

    async def test_the_backlog_is_seen_from_outside(
        self, app_database: Database, system_database: Database
    ) -> None:
        org = new_id("org")
        with tenant(org):
            await write(app_database, org, [b"1", b"2"])
        async with system_database.reader() as connection:
            backlog = await outbox.backlog(connection)
        assert backlog.records >= 2
        assert backlog.oldest_seconds > 0
