"""`headrace dead-letters`: what is shown is why, and what is asked for happens once."""

import asyncio
import json
from pathlib import Path

import pytest

from core.messaging import dead_letters, queue_topology
from core.messaging.queues import ATTEMPT, DIED, REASON
from core.queue.api import NewMessage
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings
from deploy.cli.main import main
from deploy.installation import prepare, write_env
from tests.conformance.queue.support import environment

QUEUE = "notification.push"
HEADERS = (
    ("x-first-seen", b"2026-02-18T12:00:00.000Z"), ("x-tenant", b"org_1"), (ATTEMPT, b"4"),
    (REASON, b"TimeoutError: the vendor did not answer"), (DIED, b"2026-02-18T12:07:00.000Z"),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, postgres: DatabaseSettings) -> Path:
    """An installation on the database of the tests, with two dead letters."""
    installation = prepare(tmp_path, None, 0, {})
    write_env(installation.env_file, {**installation.environment, **environment(postgres)})

    async def bury() -> None:
        async with PostgresQueue(postgres) as queue:
            await queue_topology.ensure(queue)
            await dead_letters.drop(queue, QUEUE, None, tenant=None)
            await queue.publish([NewMessage("", f"{QUEUE}.dlq", f"m{n}", b"{}", HEADERS) for n in (1, 2)])

    asyncio.run(bury())
    return tmp_path


def depths(settings: DatabaseSettings) -> tuple[int, int]:
    """Messages that wait in the queue and among its dead letters."""

    async def ask() -> tuple[int, int]:
        async with PostgresQueue(settings) as queue:
            found = await queue.depths([QUEUE, f"{QUEUE}.dlq"])
            return found[QUEUE].ready, found[f"{QUEUE}.dlq"].ready

    return asyncio.run(ask())


def clean(settings: DatabaseSettings) -> None:
    async def work() -> None:
        async with PostgresQueue(settings) as queue, queue.browse(QUEUE, 100) as (consumer, deliveries):
            for delivery in deliveries:
                await consumer.ack(delivery)

    asyncio.run(work())


def test_list_redrive_and_drop(
    folder: Path, postgres: DatabaseSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(postgres)
    data = ["--data", str(folder)]
    assert main(["dead-letters", "list", QUEUE, "--json", *data]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [letter["id"] for letter in listed] == ["m1", "m2"]
    assert listed[0] | {"id": ""} == {
        "queue": QUEUE, "id": "", "tenant": "org_1", "attempts": 4, "size": 2,
        "reason": "TimeoutError: the vendor did not answer",
        "first_seen": "2026-02-18T12:00:00.000Z", "died_at": "2026-02-18T12:07:00.000Z",
    }  # fmt: skip
    assert main(["dead-letters", "redrive", QUEUE, "m1", *data]) == 0
    assert capsys.readouterr().out == "1 redriven\n"
    assert depths(postgres) == (1, 1)
    assert main(["dead-letters", "redrive", QUEUE, "m1", *data]) == 1
    assert "no dead letter of notification.push" in capsys.readouterr().err
    assert main(["dead-letters", "drop", QUEUE, "--all", "--json", *data]) == 0
    assert json.loads(capsys.readouterr().out) == {"dropped": 1}
    assert depths(postgres) == (1, 0)
    assert main(["dead-letters", "list", QUEUE, *data]) == 0
    assert capsys.readouterr().out == "no dead letters\n"
    clean(postgres)


def test_a_wrong_name_and_a_missing_choice_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(folder)]
    assert main(["dead-letters", "list", "documents", *data]) == 1
    assert "there is no queue 'documents'; the queues are" in capsys.readouterr().err
    assert main(["dead-letters", "drop", QUEUE, *data]) == 1
    assert "or say --all" in capsys.readouterr().err
