"""Publishing, routing and delivering: the same on every work queue."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from core.queue.api import (
    BY_ROUTING_KEY,
    Binding,
    Consumer,
    Exchange,
    NewMessage,
    Queue,
    QueueChangedError,
    UnknownQueueError,
    UnroutableError,
    WorkQueue,
)
from core.queue.postgres import pattern
from core.tasks import cancel
from tests.conformance.queue.support import (
    LEASE_SECONDS,
    Backend,
    bodies,
    holder,
    new_name,
    new_queue,
    nothing_comes,
    numbered,
    take,
    to,
    until,
    until_ready,
)

SHORT = timedelta(milliseconds=200)


class Delivering:
    async def test_what_is_confirmed_is_there_as_it_was_sent(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        sent = NewMessage("", name, "id-1", bytes(range(256)), (("a", b"1"), ("traceparent", "ü".encode())))
        await queue.publish([sent])
        await until_ready(queue, name, 1)
        async with queue.consume(name, prefetch=1) as consumer:
            delivery = await consumer.get()
            assert (delivery.id, delivery.body) == ("id-1", sent.body)
            assert sorted(delivery.headers) == sorted(sent.headers)
            assert (delivery.routing_key, delivery.deliveries) == (name, 1)

    async def test_what_finds_no_queue_is_named_and_the_rest_arrives(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        lost = [NewMessage("", new_name(), "lost-1", b""), NewMessage(new_name(), "k", "lost-2", b"")]
        messages = [*to(name, b"0"), lost[0], *to(name, b"1"), lost[1], *to(name, b"2")]
        with pytest.raises(UnroutableError, match="2 messages find no queue, first 'lost-1'") as refused:
            await queue.publish(messages)
        assert [*refused.value.messages] == lost
        async with queue.consume(name, prefetch=10) as consumer:
            # A refusal may cost a repetition, never a message and never the order.
            assert (await take(consumer, 3))[0].body == b"0"
        async with queue.browse(name, 10) as (_, left):
            assert {*bodies(left)} == {b"0", b"1", b"2"}

    async def test_one_id_many_times_in_one_publish(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        nowhere = new_name()
        sent = [NewMessage("", name if n % 2 else nowhere, "same", b"%d" % n) for n in range(6)]
        with pytest.raises(UnroutableError) as refused:
            await queue.publish(sent)
        assert [message.body for message in refused.value.messages] == [b"0", b"2", b"4"]
        async with queue.consume(name, prefetch=10) as consumer:
            assert bodies(await take(consumer, 3)) == [b"1", b"3", b"5"]

    async def test_acknowledged_is_gone_and_given_back_comes_again(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(to(name, b"x"))
        async with queue.consume(name, prefetch=1) as consumer:
            first = await consumer.get()
            await consumer.nack(first)
            again = await consumer.get()
            assert (again.id, again.deliveries) == (first.id, 2)
            assert await consumer.ack(again)
            assert not await consumer.ack(again)
            assert await nothing_comes(consumer, 0.3)
        assert (await queue.depths([name]))[name].ready == 0

    async def test_what_a_consumer_leaves_goes_to_the_next(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(numbered(name, 5))
        async with queue.consume(name, prefetch=5) as consumer:
            await take(consumer, 3)
        async with queue.consume(name, prefetch=5) as consumer:
            assert {*bodies(await take(consumer, 5))} == {b"%d" % n for n in range(5)}

    async def test_what_a_killed_process_held_comes_again(self, queue: WorkQueue, backend: Backend) -> None:
        name = await new_queue(queue)
        await queue.publish(numbered(name, 4))
        async with holder(backend, name, 3) as process, queue.consume(name, prefetch=10) as consumer:
            assert len(await take(consumer, 1)) == 1
            assert await nothing_comes(consumer, 0.5)
            process.kill()
            again = await take(consumer, 3)
            assert [delivery.deliveries for delivery in again] == [2, 2, 2]

    async def test_a_consumer_that_lives_keeps_what_it_works_on(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(to(name, b"long"))
        async with queue.consume(name, prefetch=1) as slow:
            held = await slow.get()
            async with queue.consume(name, prefetch=1) as other:
                # Longer than the lease of the queue on tables.
                assert await nothing_comes(other, LEASE_SECONDS * 1.5)
                assert await slow.ack(held)

    async def test_no_more_than_the_prefetch_is_out(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(numbered(name, 10))
        async with queue.consume(name, prefetch=3) as consumer:
            held = await take(consumer, 3)
            assert await nothing_comes(consumer)
            await until_ready(queue, name, 7)
            await consumer.ack(held[0])
            assert len(await take(consumer, 1)) == 1
            assert await nothing_comes(consumer, 0.3)

    async def test_time_over_goes_to_the_dead_letters(self, queue: WorkQueue) -> None:
        dead = await new_queue(queue)
        name = await new_queue(queue, ttl=SHORT, dead_letter=dead)
        await queue.publish(to(name, b"late"))
        async with queue.consume(dead, prefetch=1) as consumer:
            assert bodies(await take(consumer, 1)) == [b"late"]
        await until_ready(queue, name, 0)

    async def test_time_over_goes_where_its_key_says(self, queue: WorkQueue) -> None:
        targets = [await new_queue(queue) for _ in range(2)]
        exchange = new_name()
        await queue.declare(
            [Exchange(exchange, "fanout")],
            [Queue(new_name(), (Binding(exchange, ""),), ttl=SHORT, dead_letter=BY_ROUTING_KEY)],
        )
        await queue.publish([NewMessage(exchange, target, "m", target.encode()) for target in targets])
        for target in targets:
            async with queue.consume(target, prefetch=1) as consumer:
                assert bodies(await take(consumer, 1)) == [target.encode()]

    async def test_time_over_without_dead_letters_is_the_end(self, queue: WorkQueue) -> None:
        name = await new_queue(queue, ttl=SHORT)
        await queue.publish(to(name, b"late"))
        await asyncio.sleep(0.5)
        async with queue.consume(name, prefetch=1) as consumer:
            assert await nothing_comes(consumer, 0.3)

    async def test_a_topic_exchange_matches_words(self, queue: WorkQueue) -> None:
        exchange = new_name()
        keys = {key: new_name() for key in ("message.*", "message.#", "raw.slack", "#", "*.a.*")}
        await queue.declare(
            [Exchange(exchange, "topic")],
            [Queue(name, (Binding(exchange, key),)) for key, name in keys.items()],
        )
        sent = ["message", "message.slack", "message.slack.x", "raw.slack", "raw.discord", "x.a.y"]
        await queue.publish([NewMessage(exchange, key, key, key.encode()) for key in sent])
        got = {}
        for key, name in keys.items():
            async with queue.browse(name, 20) as (_, deliveries):
                got[key] = {*map(bytes.decode, bodies(deliveries))}
        assert got == {
            "message.*": {"message.slack"},
            "message.#": {"message", "message.slack", "message.slack.x"},
            "raw.slack": {"raw.slack"},
            "#": {*sent},
            "*.a.*": {"x.a.y"},
        }
        assert pattern("message.*") == r"^\.message\.[^.]+$"

    async def test_a_direct_exchange_matches_the_whole_key(self, queue: WorkQueue) -> None:
        exchange, one, other = new_name(), new_name(), new_name()
        await queue.declare(
            [Exchange(exchange, "direct")],
            [
                Queue(one, (Binding(exchange, "a"), Binding(exchange, "b"))),
                Queue(other, (Binding(exchange, "a"),)),
            ],
        )
        await queue.publish([NewMessage(exchange, key, key, key.encode()) for key in "ab"])
        with pytest.raises(UnroutableError):
            await queue.publish([NewMessage(exchange, "*", "c", b"")])
        for name, wanted in ((one, {b"a", b"b"}), (other, {b"a"})):
            async with queue.browse(name, 10) as (_, deliveries):
                assert {*bodies(deliveries)} == wanted

    async def test_a_fanout_with_one_shared_and_one_queue_a_replica(self, backend: Backend) -> None:
        exchange, shared = new_name(), new_name()
        async with backend.open() as first, backend.open() as second:
            await first.declare([Exchange(exchange, "fanout")], [Queue(shared, (Binding(exchange, ""),))])
            async with (
                first.consume(shared, prefetch=2) as left,
                second.consume(shared, prefetch=2) as right,
                first.subscribe(Binding(exchange, ""), prefetch=50) as left_own,
                second.subscribe(Binding(exchange, ""), prefetch=50) as right_own,
            ):
                wanted = sorted(b"%d" % n for n in range(20))
                await first.publish([NewMessage(exchange, "", body.decode(), body) for body in wanted])
                done: list[bytes] = []

                async def work(consumer: Consumer) -> None:
                    while True:
                        delivery = await consumer.get()
                        done.append(delivery.body)
                        await consumer.ack(delivery)

                workers = [asyncio.create_task(work(left)), asyncio.create_task(work(right))]
                assert sorted(bodies(await take(left_own, 20))) == wanted
                assert sorted(bodies(await take(right_own, 20))) == wanted

                async def all_done() -> bool:
                    return len(done) >= 20

                await until(all_done)
                await cancel(*workers)
                assert sorted(done) == wanted
            # The queues of the replicas went with them: only the shared one is left to route to.
            await first.publish([NewMessage(exchange, "", "last", b"last")])
            await until_ready(first, shared, 1)

    async def test_order_with_a_single_active_consumer(self, queue: WorkQueue) -> None:
        name = await new_queue(queue, single_active=True)
        await queue.publish(numbered(name, 30))
        async with queue.consume(name, prefetch=1) as first, AsyncExitStack() as leaving:
            held = await first.get()
            second = await leaving.enter_async_context(queue.consume(name, prefetch=1))
            for number in range(10):
                assert held.body == b"%d" % number
                await first.ack(held)
                held = await first.get()
            assert await nothing_comes(second, 0.4)
            third = await leaving.enter_async_context(queue.consume(name, prefetch=1))
            await leaving.aclose()
            del second, third
            assert (held.body, await first.ack(held)) == (b"10", True)
            assert (await first.get()).body == b"11"
        # It went with a message in its hands: the next one begins there.
        async with queue.consume(name, prefetch=1) as following:
            for number in range(11, 30):
                delivery = await following.get()
                assert delivery.body == b"%d" % number
                await following.ack(delivery)

    async def test_looking_takes_nothing_away(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(numbered(name, 3))
        async with queue.browse(name, 2) as (_, deliveries):
            assert len(deliveries) == 2
        await until_ready(queue, name, 3)
        async with queue.browse(name, 10) as (consumer, deliveries):
            assert len(deliveries) == 3
            assert await consumer.ack(deliveries[1])
        await until_ready(queue, name, 2)

    async def test_looking_stops_where_it_would_take_too_much_memory(self, queue: WorkQueue) -> None:
        name = await new_queue(queue)
        await queue.publish(to(name, *(bytes(1000) for _ in range(60))))
        async with queue.browse(name, 100, 10_000) as (_, deliveries):
            assert 10 <= len(deliveries) < 40
        await until_ready(queue, name, 60)

    async def test_what_does_not_exist_is_said(self, queue: WorkQueue) -> None:
        with pytest.raises(UnknownQueueError, match=r"core/topology\.py"):
            async with queue.consume(new_name(), prefetch=1) as consumer:
                await consumer.get()
        with pytest.raises(UnknownQueueError):
            async with queue.browse(new_name(), 1):
                pass
        assert await queue.depths([new_name()]) == {}
        await queue.delete(new_name())

    async def test_declaring_is_repeatable_and_changes_are_refused(self, queue: WorkQueue) -> None:
        exchange, name = Exchange(new_name(), "direct"), new_name()
        declared = Queue(name, (Binding(exchange.name, "a"),), ttl=timedelta(minutes=1))
        for _ in range(2):
            await queue.declare([exchange], [declared])
        with pytest.raises(QueueChangedError, match=name):
            await queue.declare([], [Queue(name, ttl=timedelta(minutes=2))])
        with pytest.raises(QueueChangedError, match=exchange.name):
            await queue.declare([Exchange(exchange.name, "topic")], [])
        with pytest.raises(QueueChangedError):
            await queue.declare([], [Queue(new_name(), (Binding(new_name(), "a"),))])
        await queue.publish([NewMessage(exchange.name, "a", "m", b"")])
        await queue.delete(name)
        assert await queue.depths([name]) == {}
