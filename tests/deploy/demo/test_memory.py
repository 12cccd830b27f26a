"""The oracle of the demo on a topic whose records are purged between two demos."""

import secrets
from collections.abc import Iterator, Mapping

import pytest

from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord
from core.settings import EventLogSettings
from core.topology import TOPICS
from deploy.demo import memory, mischief, run
from deploy.servers.postgres import postgres
from tests.deploy.demo.test_oracle import event
from tests.servers import database_settings, free_port, running

TENANT = "org_a"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[run.Settings]:
    """A server of these tests' own: the topic is everybody's."""
    folder, port, password = tmp_path_factory.mktemp("demo"), free_port(), secrets.token_hex(16)
    with running(postgres(folder / "postgres", port, password), folder / "log"):
        database = database_settings(port, password)
        yield run.Settings("", EventLogSettings(eventlog_url="postgresql:"), database, folder / "imports")


async def send(settings: run.Settings, *values: bytes, purge: bool = False) -> None:
    """Into the topic as it was made anew by the first call, or behind what is there."""
    async with open_eventlog(settings.eventlog, settings.database) as log:
        await log.ensure_topics([TOPICS[mischief.TOPIC]])
        await log.append([NewRecord(mischief.TOPIC, f"{TENANT}|".encode(), value) for value in values])
        if purge:
            bounds = await log.bounds(mischief.TOPIC)
            await log.purge(mischief.TOPIC, {partition: bound.high for partition, bound in bounds.items()})


async def fates(settings: run.Settings) -> Mapping[str, int]:
    return (await run.expected(settings, TENANT)).as_dict()


async def test_a_demo_after_a_purge_goes_on_with_what_the_one_before_had_read(settings: run.Settings) -> None:
    await send(settings, event(importid="imp_1"), event(importid="imp_1"), b"\xff")
    first = {"landed": 3, "counted": 1, "duplicates": 1, "quarantined": 0, "rejected": 1}
    assert await fates(settings) == first
    memory.save(settings.checkpoints, TENANT, await run.read(settings, TENANT))
    await send(settings, purge=True)
    assert await fates(settings) == first
    other = {"meter": "llm.tokens.input", "quantity": "6"}
    await send(
        settings,
        event(importid="imp_1"),
        event(importid="imp_1", data=other),
        event(id="2", importid="imp_1"),
    )
    assert await fates(settings) == {
        "landed": 6,
        "counted": 2,
        "duplicates": 2,
        "quarantined": 1,
        "rejected": 1,
    }
    # Purged before it was kept: no figure would be right.
    await send(settings, purge=True)
    with pytest.raises(run.DemoError, match="purged before a demo had read them"):
        await fates(settings)


async def test_what_was_kept_of_another_topic_counts_for_nothing(settings: run.Settings) -> None:
    async with open_eventlog(settings.eventlog, settings.database) as log:
        await log.ensure_topics([TOPICS[mischief.TOPIC]])
        await log.delete_topic(mischief.TOPIC)
    await send(settings, event(id="9", importid="imp_1"))
    assert (await fates(settings))["landed"] == 1
