"""Dead letters over REST: each organisation its own, everything acted on is on record."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from core.contracts.audit import AuditEvent, parse
from core.database import Database
from core.eventlog import open_eventlog
from core.ids import new_id
from core.messaging import dead_letters, queue_topology
from core.messaging.queues import ATTEMPT, DIED, REASON
from core.queue.api import NewMessage
from core.queue.postgres import PostgresQueue
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS, queue_names
from services.common.principal import HEADER, Principal, sign
from tests.servers import free_port, running
from tests.services.process import environment, service

QUEUE = "document.index"
OTHER = "notification.push"
PATH = "/api/v1/dead-letters"
REASON_TEXT = "TimeoutError: the vendor did not answer"


@pytest.fixture(scope="module")
def started(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, bytes]]:
    """Address of a relay, and the key that signs principals."""
    folder = tmp_path_factory.mktemp("relay")
    variables = environment(folder, postgres, valkey, users_port=free_port(), gateway_port=free_port())
    with running(service("relay", free_port(), variables), folder / "relay.log") as component:
        yield component.address, bytes.fromhex(variables["HEADRACE_INTERNAL_KEY"])


class Caller:
    def __init__(self, started: tuple[str, bytes], tenant: str, **more: Any) -> None:
        self._address, self._key = started
        self.principal = Principal(
            tenant, new_id("usr"), "user", **{"scopes": frozenset({"dead_letters:write"}), **more}
        )

    def ask(self, method: str, path: str = "", **params: Any) -> httpx2.Response:
        headers = {HEADER: sign(self.principal, self._key)}
        return httpx2.request(method, self._address + PATH + path, headers=headers, params=params)

    def ids(self, **params: Any) -> list[str]:
        return [one["id"] for one in self.ask("GET", **params).raise_for_status().json()["data"]]


@pytest.fixture
async def queue(
    postgres: DatabaseSettings, eventlog_settings: EventLogSettings
) -> AsyncIterator[PostgresQueue]:
    """No dead letters and nothing to do."""
    async with open_eventlog(eventlog_settings, postgres) as log:
        await log.ensure_topics([*TOPICS.values()])
    async with PostgresQueue(postgres) as opened:
        await queue_topology.ensure(opened)
        for name in queue_names():
            await dead_letters.drop(opened, name, None, tenant=None)
            await empty(opened, name)
        yield opened


async def empty(queue: PostgresQueue, name: str) -> list[str]:
    async with queue.browse(name, 1000) as (consumer, held):
        for delivery in held:
            await consumer.ack(delivery)
        return [delivery.id for delivery in held]


async def bury(queue: PostgresQueue, name: str, tenant: str, *ids: str) -> None:
    headers = (
        ("x-first-seen", b"2026-02-18T12:00:00.000Z"), ("x-tenant", tenant.encode()), (ATTEMPT, b"4"),
        (REASON, REASON_TEXT.encode()), (DIED, b"2026-02-18T12:07:00.000Z"),
    )  # fmt: skip
    await queue.publish([NewMessage("", f"{name}.dlq", message, b"{}", headers) for message in ids])


async def recorded(database: Database, actor: str) -> list[AuditEvent]:
    """Audit events of one actor, wherever they are on their way."""
    async with database.reader() as connection:
        found = await connection.execute(
            text(
                "select value from outbox where topic = 'audit.logs' union all select r.value from eventlog.record r"
                " join eventlog.topic t on t.ref = r.topic_ref where t.name = 'audit.logs'"
            )
        )
        return [event for value in found.scalars() if (event := parse(bytes(value))).actor == actor]


async def test_an_organisation_sees_its_own_and_the_owner_everybodys(
    started: tuple[str, bytes], queue: PostgresQueue
) -> None:
    ours, theirs = new_id("org"), new_id("org")
    await bury(queue, QUEUE, ours, "mq_1", "mq_2")
    await bury(queue, OTHER, theirs, "mq_3")
    admin, owner = Caller(started, ours), Caller(started, "", platform_owner=True)
    assert admin.ask("GET").json()["data"][0] == {
        "id": f"{QUEUE}:mq_1", "object": "dead_letter", "queue": QUEUE, "message_id": "mq_1", "tenant": ours,
        "reason": REASON_TEXT, "attempts": 4, "size": 2,
        "first_seen": "2026-02-18T12:00:00.000Z", "died_at": "2026-02-18T12:07:00.000Z",
    }  # fmt: skip
    assert admin.ids() == [f"{QUEUE}:mq_1", f"{QUEUE}:mq_2"]
    assert admin.ids(queue=OTHER) == []
    assert sorted(owner.ids()) == [f"{QUEUE}:mq_1", f"{QUEUE}:mq_2", f"{OTHER}:mq_3"]
    first = owner.ask("GET", limit=1).json()
    assert (len(first["data"]), first["has_more"]) == (1, True)
    assert admin.ask("GET", queue="documents").status_code == 422
    assert Caller(started, ours, scopes=frozenset({"usage:read"})).ask("GET").status_code == 403
    assert Caller(started, "").ask("GET").json()["code"] == "tenant_required"


@pytest.mark.parametrize(("act", "outcome"), [("redrive", "redriven"), ("discard", "discarded")])
async def test_what_is_acted_on_is_gone_and_on_record(
    started: tuple[str, bytes], queue: PostgresQueue, system_database: Database, act: str, outcome: str
) -> None:
    ours = new_id("org")
    await bury(queue, QUEUE, ours, "mq_1", "mq_2")
    admin = Caller(started, ours)
    answer = admin.ask("POST", f"/{QUEUE}:mq_1/{act}")
    assert answer.json() == {"id": f"{QUEUE}:mq_1", "object": "dead_letter", "outcome": outcome}
    assert admin.ids() == [f"{QUEUE}:mq_2"]
    assert await empty(queue, QUEUE) == (["mq_1"] if act == "redrive" else [])
    assert admin.ask("POST", f"/{QUEUE}:mq_1/{act}").status_code == 404
    events = await recorded(system_database, admin.principal.subject)
    assert [(one.action, one.tenant, one.target, one.outcome) for one in events] == [
        (f"dead_letter.{act}", ours, f"{QUEUE}:mq_1", "success")
    ]


async def test_nobody_acts_on_what_is_anothers(
    started: tuple[str, bytes], queue: PostgresQueue, system_database: Database
) -> None:
    ours, theirs = new_id("org"), new_id("org")
    await bury(queue, QUEUE, theirs, "mq_1")
    stranger = Caller(started, ours)
    for act in ("redrive", "discard"):
        assert stranger.ask("POST", f"/{QUEUE}:mq_1/{act}").status_code == 404
        assert stranger.ask("POST", f"/nowhere:mq_1/{act}").status_code == 404
    assert Caller(started, theirs).ids() == [f"{QUEUE}:mq_1"]
    assert await empty(queue, QUEUE) == []
    assert await recorded(system_database, stranger.principal.subject) == []
    owner = Caller(started, "", platform_owner=True)
    assert owner.ask("POST", f"/{QUEUE}:mq_1/redrive").status_code == 200
    assert [one.tenant for one in await recorded(system_database, owner.principal.subject)] == [theirs]


async def test_an_id_in_any_script_can_be_acted_on(
    started: tuple[str, bytes], queue: PostgresQueue, system_database: Database
) -> None:
    ours = new_id("org")
    await bury(queue, QUEUE, ours, "信 1 someone@example.org")
    admin = Caller(started, ours)
    assert admin.ask("POST", f"/{admin.ids()[0]}/discard").status_code == 200
    (event,) = await recorded(system_database, admin.principal.subject)
    assert event.target.startswith("sha256:")
