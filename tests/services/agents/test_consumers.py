"""What the agents service reads of the log."""

import asyncio
import dataclasses
from typing import Any

from msgspec.structs import replace

from core.contracts.agents import EVENTS
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord, Record
from core.ids import new_id
from core.settings import DatabaseSettings, EventLogSettings
from core.tasks import cancel
from core.topology import TOPICS
from services.agents.consumers import Follower, positions
from tests.services.agents.arena import Asker


async def test_a_record_that_names_no_run_holds_up_nobody(asker: Asker) -> None:
    """PostgreSQL takes no U+0000: such a batch would have been tried for ever."""
    asked = await asker.ask("anything")
    await asker.cancel(asked.run_id)
    (good,) = [one for one in (await asker.stories())[asked.run_id].events if one.seq == 1]
    bad = replace(good, subject="run_\x00")
    batch = [Record(EVENTS, 3, offset, b"key", one.encode(), 0) for offset, one in enumerate((bad, good), 40)]
    nothing: Any = None  # no log is asked here
    handle = positions(nothing, asker.system)._handle
    async with asyncio.timeout(10):
        await handle(batch)
    row = (await asker.runs())[asked.run_id]
    assert (row.event_partition, row.first_offset) == (3, 41)


async def test_a_group_that_cannot_be_joined_is_joined_later(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings
) -> None:
    topic = dataclasses.replace(TOPICS["agent.tasks"], name=new_id("late"))
    heard = asyncio.Event()

    async def hear(records: list[Record]) -> None:
        heard.set()

    async with open_eventlog(eventlog_settings, postgres) as log:
        following = asyncio.create_task(Follower(log, topic.name, topic.name, hear).run())
        await asyncio.sleep(0.2)  # the first try finds no topic
        assert not following.done()
        await log.ensure_topics([topic])
        await log.append([NewRecord(topic.name, b"key", b"value")])
        async with asyncio.timeout(30):
            await heard.wait()
        await cancel(following)
