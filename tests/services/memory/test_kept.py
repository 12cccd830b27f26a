"""A consumer comes back by itself, whatever ended it."""

import asyncio
from dataclasses import replace

from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord, Record
from core.ids import new_id
from core.messaging.lanes import Lanes
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from services.memory.kept import Kept


async def test_a_consumer_whose_topic_comes_late_consumes_it(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings
) -> None:
    topic = replace(TOPICS["agent.events"], name=new_id("late"))
    heard = asyncio.Event()

    async def hear(record: Record) -> None:
        heard.set()

    async with open_eventlog(eventlog_settings, postgres) as log:
        kept = Kept("late", lambda: Lanes(log, [topic.name], topic.name, hear), pause=0.05)
        running = asyncio.create_task(kept.run())
        await asyncio.sleep(0.2)  # the first tries find no topic
        assert not running.done()
        await log.ensure_topics([topic])
        await log.append([NewRecord(topic.name, b"key", b"value")])
        async with asyncio.timeout(30):
            await heard.wait()
        kept.stop()
        async with asyncio.timeout(30):
            await running
