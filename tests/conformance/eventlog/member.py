"""A group member as a process: does what each line of its input says and answers with a line of JSON.

python -m tests.conformance.eventlog.member TOPIC GROUP SESSION_SECONDS
{"take": n} -> {"took": [[partition, offset, value], …]}
{"commit": [[partition, offset], …]} -> {"fenced": [partition, …]}
"""

import asyncio
import json
import sys
from typing import Any

from core.eventlog.api import EventLog, GroupConsumer
from core.eventlog.kafka import KafkaEventLog
from core.eventlog.postgres import PostgresEventLog
from core.settings import DatabaseSettings, EventLogSettings
from tests.conformance.eventlog.support import take


async def obey(consumer: GroupConsumer, topic: str, command: dict[str, Any]) -> dict[str, Any]:
    if "take" in command:
        records = await take(consumer, command["take"])
        return {"took": [[record.partition, record.offset, record.value.decode()] for record in records]}
    fenced = await consumer.commit({(topic, partition): offset for partition, offset in command["commit"]})
    return {"fenced": sorted(partition for _, partition in fenced)}


async def main(topic: str, group: str, session_timeout: float) -> None:
    settings = EventLogSettings()
    log: EventLog
    if settings.eventlog_url.startswith("kafka"):
        log = KafkaEventLog(settings, session_timeout=session_timeout)
    else:
        log = PostgresEventLog(DatabaseSettings(), session_timeout=session_timeout)
    async with log:
        consumer = log.consumer([topic], group)
        await consumer.start()
        print(json.dumps({"joined": group}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await obey(consumer, topic, json.loads(line))), flush=True)
        await consumer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
