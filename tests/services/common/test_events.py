"""Readers of `agent.events`: nothing left out, nothing twice, or a plain word that it cannot be given."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from core.contracts.agents import EVENTS, event
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog, NewRecord, Position
from core.settings import DatabaseSettings, EventLogSettings
from core.tasks import cancel
from core.topology import TOPICS
from services.common.events import AgentEvents, EventStream, Span, StreamLostError, Vector, agent_events
from tests.services.common.run_events import Run, record, records

Following = Callable[..., Any]


@pytest.fixture
async def log(postgres: DatabaseSettings, eventlog_settings: EventLogSettings) -> AsyncIterator[EventLog]:
    async with open_eventlog(eventlog_settings, postgres) as opened:
        await opened.ensure_topics(list(TOPICS.values()))
        yield opened


@asynccontextmanager
async def following(log: EventLog, **options: Any) -> AsyncIterator[AgentEvents]:
    """One process that follows the log."""
    events = AgentEvents(log, **options)
    task = asyncio.create_task(events.run())
    try:
        assert await events.caught_up()
        yield events
    finally:
        await cancel(task)


@pytest.fixture
async def events(log: EventLog) -> AsyncIterator[AgentEvents]:
    async with following(log) as started:
        yield started


async def read(stream: EventStream, count: int | None = None) -> list[int]:
    """Sequence numbers of the next events; to the end of the stream where no count is given."""
    found: list[int] = []
    async with asyncio.timeout(20):
        async for head, _ in stream:
            found.append(head.seq)
            if len(found) == count:
                break
    return found


def begins(first: Position) -> Span:
    """Of a run whose end is not known."""
    return Span(first.partition, first.offset)


async def taken_in(events: AgentEvents, position: Position) -> None:
    """Wait until the process has seen this record."""
    async with asyncio.timeout(20):
        while events.ring.positions[position.partition] <= position.offset:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_run_is_followed_to_its_end(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    async with events.follow(f"run:{run.id}", after=(0, 0)) as stream:
        assert stream.recovered
        for one in run.whole(30):
            await log.append([record(one)])
        assert await read(stream) == list(range(1, 34))


async def test_doubles_and_stale_epochs_are_dropped(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    first = run.deltas(5)
    stale = msgspec.structs.replace(first[0], seq=7, epoch=1)
    run.epoch = 2
    taken_over = run.event("run.takeover", old_epoch=1, new_epoch=2, resumed_from=0, discard_after_seq=2)
    async with events.follow(f"run:{run.id}", after=(0, 0)) as stream:
        await log.append(records([*first, *first, first[2], taken_over, stale, first[4], *run.end()]))
        kinds = []
        async with asyncio.timeout(20):
            async for head, raw in stream:
                kinds.append((head.epoch, head.seq))
                if head.type == "run.takeover":
                    assert event(raw).data["discard_after_seq"] == 2
    assert kinds == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 6), (2, 7), (2, 8)]


async def test_resume_from_memory_at_every_place(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    await taken_in(events, (await log.append(records(run.whole(9))))[-1])
    for seq in range(13):
        async with events.follow(f"run:{run.id}", after=(1, seq)) as stream:
            assert stream.recovered
            assert await read(stream) == list(range(seq + 1, 13))


async def test_resume_beyond_memory_reads_the_log_from_the_first_offset(log: EventLog) -> None:
    run, other = Run(), Run()
    positions = await log.append(records(run.deltas(50)))
    await log.append(records(other.whole(50)))
    async with following(log, ring_bytes=20_000) as events:
        await taken_in(events, (await log.append(records(run.deltas(10))))[-1])
        assert len(events.ring.entries(f"run:{run.id}")) < 60
        async with events.follow(f"run:{run.id}", after=(1, 20), span=begins(positions[0])) as stream:
            assert stream.recovered
            await log.append(records([*run.deltas(5), *run.end()]))
            assert await read(stream) == list(range(21, 68))
        async with events.follow(f"run:{run.id}", after=(1, 20)) as stream:
            assert (stream.recovered, stream.reason) == (False, "not_in_memory")


async def test_an_old_run_on_a_busy_partition_is_read_where_it_stands(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_events, "MAX_LOG_RECORDS", 50)
    monkeypatch.setattr(agent_events, "_PIECE", 20)
    run = Run()
    positions = await log.append(records(run.whole(60)))
    noise = Run(conversation=run.conversation)  # in the same partition
    end = (await log.append(records(noise.whole(300))))[-1]
    asked: list[tuple[int, int]] = []
    reading = log.read

    def read_piece(topic: str, partition: int, start: int, stop: int) -> Any:
        asked.append((start, stop))
        return reading(topic, partition, start, stop)

    monkeypatch.setattr(log, "read", read_piece)
    first, last = positions[0], positions[-1]
    async with following(log, ring_bytes=5_000) as events:
        await taken_in(events, end)
        span = Span(first.partition, first.offset, last.offset)
        async with events.follow(f"run:{run.id}", after=(0, 0), span=span) as stream:
            assert (stream.recovered, stream.reason) == (True, "")
            assert await read(stream) == list(range(1, 64))
        assert (asked[0][0], asked[-1][1]) == (first.offset, last.offset + 1)
        # Also where its end is not known yet.
        async with events.follow(f"run:{run.id}", after=(0, 0), span=begins(first)) as stream:
            assert await read(stream) == list(range(1, 64))
        # Where a conversation's events stand among so many is not known.
        async with events.follow(f"conversation:{run.conversation}", after=(events.epoch, 0)) as stream:
            assert (stream.recovered, stream.reason) == (False, "too_far")


async def test_clients_that_take_nothing_hold_up_nobody(log: EventLog) -> None:
    run = Run()
    positions = await log.append(records(run.whole(60)))
    end = (await log.append(records(Run(conversation=run.conversation).whole(60))))[-1]
    async with following(log, ring_bytes=5_000) as events, AsyncExitStack() as stack:
        await taken_in(events, end)
        for _ in range(5):
            stream = await stack.enter_async_context(
                events.follow(f"run:{run.id}", after=(0, 0), span=begins(positions[0]))
            )
            entries = await stack.enter_async_context(aclosing(stream.entries()))
            async with asyncio.timeout(10):
                assert (await anext(entries)).head.seq == 1  # and then it takes nothing more


async def test_records_appended_while_the_log_is_read_come_once(log: EventLog) -> None:
    run = Run()
    positions = await log.append(records(run.deltas(300)))
    async with following(log, ring_bytes=20_000) as events:
        over = asyncio.Event()

        async def write() -> None:
            while not over.is_set():
                await log.append(records(run.deltas(3)))
            await log.append(records(run.end()))

        writing = asyncio.create_task(write())
        for seq in (0, 100, 250):
            async with events.follow(f"run:{run.id}", after=(1, seq), span=begins(positions[0])) as stream:
                assert await read(stream, 320) == list(range(seq + 1, seq + 321))
        over.set()
        await writing


async def test_what_the_log_has_lost_is_said(log: EventLog) -> None:
    run = Run()
    positions = await log.append(records(run.whole(20)))
    partition = positions[0].partition
    await log.purge(EVENTS, {partition: positions[10].offset})
    async with following(log, ring_bytes=5_000) as events:
        async with events.follow(f"run:{run.id}", after=(1, 3), span=begins(positions[0])) as stream:
            assert (stream.recovered, stream.reason) == (False, "expired")
        async with events.follow(
            f"conversation:{run.conversation}", after=(events.epoch, positions[3].offset)
        ) as stream:
            assert (stream.recovered, stream.reason) == (False, "expired")
        async with events.follow(f"conversation:{run.conversation}", after=(events.epoch + 1, 5)) as stream:
            assert (stream.recovered, stream.reason) == (False, "topic_changed")


async def test_a_gap_ends_the_stream_and_is_never_silent(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    before, lost, after = run.deltas(3), run.deltas(1), run.deltas(3)
    assert lost
    async with events.follow(f"run:{run.id}", after=(0, 0)) as stream:
        await log.append(records([*before, *after]))
        with pytest.raises(StreamLostError, match="gap"):
            await read(stream)


async def test_a_run_that_begins_above_the_readers_place_is_a_gap(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    run.deltas(4)
    async with events.follow(f"run:{run.id}", after=(0, 0)) as stream:
        await log.append(records(run.deltas(1)))
        with pytest.raises(StreamLostError, match="gap"):
            await read(stream)


async def test_a_slow_reader_is_told(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    async with events.follow(f"run:{run.id}", after=(0, 0), queue_bytes=5_000) as stream:
        await taken_in(events, (await log.append(records(run.deltas(100))))[-1])
        with pytest.raises(StreamLostError, match="too_slow"):
            await read(stream)


@pytest.mark.parametrize("ring_bytes", [1 << 20, 10_000])
async def test_a_conversation_is_followed_over_its_runs(log: EventLog, ring_bytes: int) -> None:
    one = Run()
    two = Run(tenant=one.tenant, user=one.user, conversation=one.conversation)
    async with following(log, ring_bytes=ring_bytes) as events:
        positions = await log.append(records([*one.whole(20), *Run().whole(9), *two.whole(20)]))
        mine = [p for n, p in enumerate(positions) if not 23 <= n < 35]
        await taken_in(events, mine[-1])
        async with events.follow(
            f"conversation:{one.conversation}", after=(events.epoch, mine[9].offset)
        ) as stream:
            assert stream.recovered
            found = []
            async with asyncio.timeout(20):
                async for entry in stream.entries():
                    found.append((entry.head.subject, entry.head.seq, entry.offset))
                    if len(found) == 36:
                        break
        wanted = [(one.id, seq) for seq in range(11, 24)] + [(two.id, seq) for seq in range(1, 24)]
        assert found == [(*run, place.offset) for run, place in zip(wanted, mine[10:], strict=True)]


@pytest.mark.parametrize("ring_bytes", [1 << 20, 10_000])
async def test_a_user_is_followed_over_conversations_by_a_vector(log: EventLog, ring_bytes: int) -> None:
    tenant, user = Run().tenant, Run().user
    before = [Run(tenant=tenant, user=user) for _ in range(3)]
    missed = [Run(tenant=tenant, user=user) for _ in range(6)]
    async with following(log, ring_bytes=ring_bytes) as events:
        await taken_in(events, (await log.append(records(e for run in before for e in run.whole(3))))[-1])
        cursor = Vector.parse(str(events.vector))
        elsewhere = Run(user=user).whole(3)  # the same person in another organisation
        for position in await log.append(
            records([*(e for run in missed for e in run.whole(30)), *elsewhere])
        ):
            await taken_in(events, position)
        async with events.follow(f"user:{tenant}/{user}", after=cursor) as stream:
            assert stream.recovered
            found = []
            async with asyncio.timeout(20):
                async for head, _ in stream:
                    found.append((head.subject, head.type))
                    if len(found) == 18:
                        break
        kinds = ("run.started", "message.completed", "run.completed")
        assert sorted(found) == sorted((run.id, kind) for run in missed for kind in kinds)


async def test_a_reader_of_now_gets_nothing_of_before(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    await taken_in(events, (await log.append(records(run.deltas(5))))[-1])
    async with events.follow(f"run:{run.id}") as stream:
        await log.append(records([*run.deltas(2), *run.end()]))
        assert await read(stream) == [6, 7, 8, 9]


async def test_what_is_no_event_is_passed_over(log: EventLog, events: AgentEvents) -> None:
    run = Run()
    async with events.follow(f"run:{run.id}", after=(0, 0)) as stream:
        junk = NewRecord(EVENTS, run.conversation.encode(), b'{"type": 1}')
        await log.append([record(run.event("run.started")), junk, *records(run.end())])
        assert await read(stream) == [1, 2, 3]


async def test_wrong_channels_and_positions_are_refused(events: AgentEvents) -> None:
    for channel in ("run:", "run", "org:org_1", "run:a b", "run:../x", "run:" + "a" * 65, "user:usr_1"):
        with pytest.raises(ValueError, match="channel"):
            async with events.follow(channel):
                pass
    with pytest.raises(ValueError, match="position"):
        async with events.follow("run:run_1", after=Vector(1, (0,))):
            pass
    with pytest.raises(ValueError, match="position"):
        async with events.follow("user:org_1/usr_1", after=(1, 1)):
            pass


async def test_memory_is_bounded_and_lets_go_of_what_nobody_follows(log: EventLog) -> None:
    async with following(log, ring_bytes=50_000) as events:
        for _ in range(30):
            await taken_in(events, (await log.append(records(Run().whole(20))))[-1])
        assert events.ring.bytes <= 50_000
        assert events.ring.channels <= 3 * len(events.ring)
