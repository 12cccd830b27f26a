"""Attempts, retry ladder, dead letters, outbox: written once, the same on every work queue."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import text

from core.clock import now, rfc3339
from core.database import Database, tenant
from core.ids import new_id
from core.messaging import dead_letters, queue_outbox, queue_topology
from core.messaging.queue_outbox import FIRST_SEEN
from core.messaging.queue_relay import QueueRelay
from core.messaging.queues import Message, Permanent, QueueConsumer, enqueue, first_time
from core.queue.api import NewMessage, UnknownQueueError, WorkQueue
from core.settings import DatabaseSettings
from core.topology import QUEUES, QueueFamily, dead_letters_of
from tests.conformance.queue.support import bodies, new_family, new_name, until, until_ready, working

DOCUMENTS = "document.index"


async def send(queue: WorkQueue, family: QueueFamily, *ids: str, age: timedelta = timedelta()) -> None:
    seen = rfc3339(now() - age).encode()
    headers = ((FIRST_SEEN, seen), ("x-tenant", b"org_1"))
    await queue.publish([NewMessage(family.exchange, "work", id_, id_.encode(), headers) for id_ in ids])


class Laddering:
    async def test_one_attempt_and_three_more_then_the_dead_letters(self, queue: WorkQueue) -> None:
        family = await new_family(queue)
        attempts: list[tuple[int, datetime, datetime]] = []

        async def refuse(message: Message) -> None:
            attempts.append((message.attempt, now(), message.first_seen))
            raise ValueError("451 try later")

        async with working(queue, family.queue, refuse, family):
            await send(queue, family, "m1")
            await until_ready(queue, dead_letters_of(family.queue), 1)
        assert [attempt for attempt, _, _ in attempts] == [1, 2, 3, 4]
        pauses = [(later - earlier) for (_, earlier, _), (_, later, _) in pairwise(attempts)]
        assert all(pause >= wanted for pause, wanted in zip(pauses, family.ladder, strict=True))
        assert len({first_seen for _, _, first_seen in attempts}) == 1
        (letter,) = await dead_letters.letters(queue, [family.queue], 100, tenant=None)
        assert (letter.id, letter.attempts, letter.tenant, letter.reason) == (
            "m1", 4, "org_1", "ValueError: 451 try later",
        )  # fmt: skip
        assert letter.first_seen == attempts[0][2]
        assert letter.died_at is not None

    async def test_refused_for_good_is_tried_once(self, queue: WorkQueue) -> None:
        family = await new_family(queue)
        calls = 0

        async def refuse(_: Message) -> None:
            nonlocal calls
            calls += 1
            raise Permanent("550 no such user")

        async with working(queue, family.queue, refuse, family):
            await send(queue, family, "m1")
            await until_ready(queue, dead_letters_of(family.queue), 1)
        (letter,) = await dead_letters.letters(queue, [family.queue], 100, tenant=None)
        assert (calls, letter.attempts, letter.reason) == (1, 1, "550 no such user")

    async def test_a_later_attempt_may_succeed(self, queue: WorkQueue) -> None:
        family = await new_family(queue)
        attempts: Counter[str] = Counter()

        async def fail_once(message: Message) -> None:
            attempts[message.id] += 1
            if message.attempt == 1:
                raise OSError("away")

        async with working(queue, family.queue, fail_once, family):
            await send(queue, family, *(f"m{n}" for n in range(20)))

            async def all_twice() -> bool:
                return attempts.total() == 40

            await until(all_twice)
            await until_ready(queue, family.queue, 0)
        assert set(attempts.values()) == {2}
        assert await dead_letters.letters(queue, [family.queue], 100, tenant=None) == []

    async def test_a_life_ends_at_its_time_whatever_is_left_of_the_ladder(self, queue: WorkQueue) -> None:
        family = await new_family(queue, ttl=timedelta(hours=24), ladder=(0.1, 60, 300))
        attempts: list[str] = []

        async def refuse(message: Message) -> None:
            attempts.append(message.id)
            raise ValueError("no")

        async with working(queue, family.queue, refuse, family):
            await send(queue, family, "old", age=timedelta(hours=25))
            await send(queue, family, "soon", age=timedelta(hours=24) - timedelta(seconds=30))
            await until_ready(queue, dead_letters_of(family.queue), 2)
        reasons = {
            letter.id: (letter.attempts, letter.reason)
            for letter in await dead_letters.letters(queue, [family.queue], 100, tenant=None)
        }
        assert reasons == {
            "old": (1, "expired: older than 24 h"),
            "soon": (2, "expired: older than 24 h at its next attempt; ValueError: no"),
        }
        assert attempts == ["soon", "soon"]

    async def test_nobody_took_it_in_its_time(self, queue: WorkQueue) -> None:
        family = await new_family(queue, ttl=timedelta(milliseconds=200))
        await send(queue, family, "m1")
        async with queue.consume(dead_letters_of(family.queue), prefetch=1) as waiting:
            await waiting.get()
        (letter,) = await dead_letters.letters(queue, [family.queue], 100, tenant=None)
        assert (letter.reason, letter.attempts) == ("expired: nobody took it in its time", 0)

    async def test_a_redriven_letter_is_delivered_once_and_a_dropped_one_never(
        self, queue: WorkQueue
    ) -> None:
        family = await new_family(queue, ttl=timedelta(hours=24))
        healed = False
        done: list[tuple[str, int, bytes]] = []

        async def handle(message: Message) -> None:
            if not healed:
                raise Permanent("not yet")
            done.append((message.id, message.attempt, message.body))

        name = family.queue
        async with working(queue, name, handle, family):
            await send(queue, family, "one", "two", "three", age=timedelta(hours=23))
            await until_ready(queue, dead_letters_of(name), 3)
            healed = True
            assert await dead_letters.drop(queue, name, ["two"], tenant=None) == 1
            await until_ready(queue, dead_letters_of(name), 2)
            assert await dead_letters.redrive(queue, name, ["one"], tenant=None) == 1
            await until_ready(queue, dead_letters_of(name), 1)
            assert await dead_letters.redrive(queue, name, None, tenant=None) == 1
            assert await dead_letters.redrive(queue, name, None, tenant=None) == 0
            await until_ready(queue, name, 0)

            async def both() -> bool:
                return len(done) >= 2

            await until(both)
        assert sorted(done) == [("one", 1, b"one"), ("three", 1, b"three")]
        assert await dead_letters.letters(queue, [name, new_name()], 100, tenant=None) == []
        with pytest.raises(UnknownQueueError):
            await dead_letters.redrive(queue, new_name(), None, tenant=None)

    async def test_who_ends_its_consumers_is_buried(
        self, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        family = await new_family(queue)
        await send(queue, family, "poison")
        monkeypatch.setattr("core.messaging.queues.MAX_DELIVERIES", 3)
        for _ in range(3):
            # A consumer that dies gives no answer: its message goes back by itself.
            async with queue.consume(family.queue, prefetch=1) as dying:
                await dying.get()
        calls: list[str] = []

        async def handle(message: Message) -> None:
            calls.append(message.id)

        async with working(queue, family.queue, handle, family):
            await until_ready(queue, dead_letters_of(family.queue), 1)
        (letter,) = await dead_letters.letters(queue, [family.queue], 100, tenant=None)
        assert calls == []
        assert "4 times without an answer" in letter.reason

    async def test_what_runs_is_finished_and_what_waits_goes_back(self, queue: WorkQueue) -> None:
        family = await new_family(queue)
        entered, finish = asyncio.Event(), asyncio.Event()
        done: list[str] = []

        async def slow(message: Message) -> None:
            entered.set()
            await finish.wait()
            done.append(message.id)

        await send(queue, family, "m1", "m2", "m3")
        consumer = QueueConsumer(queue, family.queue, slow, family=family, concurrency=1)
        running = asyncio.create_task(consumer.run())
        await entered.wait()
        assert consumer.watchdog.consuming
        await consumer.watchdog.check()
        consumer.stop()
        finish.set()
        await running
        assert len(done) == 1
        await until_ready(queue, family.queue, 2)

    async def test_handlers_run_at_once_up_to_the_bound(self, queue: WorkQueue) -> None:
        family = await new_family(queue)
        together = most = 0
        done = 0

        async def handle(_: Message) -> None:
            nonlocal together, most, done
            together += 1
            most = max(most, together)
            await asyncio.sleep(0.02)
            together -= 1
            done += 1

        async def all_done() -> bool:
            return done == 40

        async with working(queue, family.queue, handle, family, concurrency=5):
            await send(queue, family, *(f"m{n}" for n in range(40)))
            await until(all_done)
        assert most == 5


@asynccontextmanager
async def relaying(settings: DatabaseSettings, queue: WorkQueue) -> AsyncIterator[QueueRelay]:
    relay = QueueRelay(settings, queue)
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await running


class Outboxing:
    async def test_committed_messages_come_in_order_with_their_trace(
        self, queue: WorkQueue, postgres: DatabaseSettings, app_database: Database
    ) -> None:
        await queue_topology.ensure(queue)
        org = new_id("org")
        got: list[tuple[bytes, str, int]] = []

        async def handle(message: Message) -> None:
            if message.tenant == org:
                got.append((message.body, message.id, trace.get_current_span().get_span_context().trace_id))

        async def all_there() -> bool:
            return len(got) >= 50

        async def fail() -> None:
            async with app_database.writer() as connection:
                await enqueue(connection, DOCUMENTS, "index", b"never", org)
                raise ZeroDivisionError

        span = TracerProvider().get_tracer("test").start_span("request")
        ids = []
        async with relaying(postgres, queue):
            with tenant(org), trace.use_span(span):
                with pytest.raises(ZeroDivisionError):
                    await fail()
                for number in range(50):
                    async with app_database.writer() as connection:
                        ids.append(await enqueue(connection, DOCUMENTS, "index", b"%d" % number, org))
            async with working(queue, DOCUMENTS, handle, concurrency=1):
                await until(all_there)
        assert got == [
            (b"%d" % number, ids[number], span.get_span_context().trace_id) for number in range(50)
        ]

    async def test_what_no_queue_takes_waits_for_a_person(
        self, queue: WorkQueue, postgres: DatabaseSettings, app_database: Database, system_database: Database
    ) -> None:
        await queue_topology.ensure(queue)
        org = new_id("org")
        with tenant(org):
            async with app_database.writer() as connection:
                await enqueue(connection, DOCUMENTS, "nobody", b"1", org)
                good = await enqueue(connection, DOCUMENTS, "index", b"2", org)

        async def died() -> bool:
            async with system_database.reader() as connection:
                return any(dead.tenant_id == org for dead in await queue_outbox.dead(connection))

        seen: list[str] = []

        async def handle(message: Message) -> None:
            seen.append(message.id)

        async def arrived() -> bool:
            return good in seen

        async with relaying(postgres, queue), working(queue, DOCUMENTS, handle):
            await until(died)
            await until(arrived)
        async with system_database.writer() as connection:
            (dead,) = [row for row in await queue_outbox.dead(connection) if row.tenant_id == org]
            assert (dead.code, dead.routing_key) == ("unroutable", "nobody")
            assert await queue_outbox.replay(connection, [dead.id]) == 1
        async with relaying(postgres, queue):
            await until(died)
        async with system_database.writer() as connection:
            (dead,) = [row for row in await queue_outbox.dead(connection) if row.tenant_id == org]
            assert await queue_outbox.drop(connection, [dead.id]) == 1

    async def test_a_message_that_comes_twice_has_its_effect_once(
        self, queue: WorkQueue, app_database: Database
    ) -> None:
        family = await new_family(queue)
        effects: list[str] = []
        calls = 0

        async def handle(message: Message) -> None:
            nonlocal calls
            calls += 1
            with tenant(message.tenant):
                async with app_database.writer() as connection:
                    if await first_time(connection, message):
                        await connection.execute(text("select 1"))
                        effects.append(message.id)

        async def five_calls() -> bool:
            return calls == 5

        async with working(queue, family.queue, handle, family):
            await send(queue, family, "a", "b")
            await send(queue, family, "a", "b", "a")
            await until(five_calls)
        assert sorted(effects) == ["a", "b"]

    async def test_only_registered_families_and_small_bodies(self, app_database: Database) -> None:
        org = new_id("org")
        with tenant(org):
            async with app_database.writer() as connection:
                with pytest.raises(queue_outbox.UnknownFamilyError, match=r"core\.topology"):
                    await enqueue(connection, "nothing.such", "x", b"", org)
                with pytest.raises(queue_outbox.MessageTooLargeError, match="object store"):
                    await enqueue(connection, DOCUMENTS, "index", b"x" * 1_000_001, org)

    async def test_everything_of_the_topology_is_there(self, queue: WorkQueue) -> None:
        await queue_topology.ensure(queue)
        await queue_topology.ensure(queue)
        exchanges, queues = queue_topology.declarations(QUEUES.values())
        assert {exchange.name for exchange in exchanges} >= {
            "channel.inbound", "channel.outbound", "notification", "document", "plugin",
        }  # fmt: skip
        names = {queue_.name for queue_ in queues}
        assert names >= {"document.index", "document.index.dlq", "notification.email", "plugin.event.dlq"}
        assert (await queue.depths(names)).keys() == names
        async with queue.browse("document.index.dlq", 1) as (_, deliveries):
            assert bodies(deliveries) == []
