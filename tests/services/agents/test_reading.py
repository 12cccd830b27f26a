"""What is read of the newest state, and what may be a little old."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from core.database import Database
from core.settings import DatabaseSettings
from deploy import migrate
from deploy.servers.postgres import postgres as postgres_server
from services.agents import schemas
from services.agents.attachments import Attachments
from services.agents.handlers import Agents, Conversations
from services.common.idempotency import Repeatable
from services.common.paging import Page
from tests.servers import database_settings, free_port, running
from tests.services.agents.arena import Asker

PAGE = Page(limit=10)


@pytest.fixture(scope="module")
def far_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """A server whose replica knows the schema and nothing that was written since."""
    folder, port, password = tmp_path_factory.mktemp("behind"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        settings = database_settings(port, password)
        known = {
            "hr_owner": settings.database_owner_password,
            "hr_app": settings.database_app_password,
            "hr_system": settings.database_system_password,
        }
        passwords = {role: one.get_secret_value() for role, one in known.items() if one is not None}
        passwords["hr_dagster"] = secrets.token_hex(16)
        migrate.ensure_roles(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", "old", passwords)
        replica = f"postgresql://127.0.0.1:{port}/old"
        migrate.upgrade(settings.model_copy(update={"database_url": replica}))
        yield settings.model_copy(update={"database_replica_url": replica})


@pytest.fixture
async def asker(far_behind: DatabaseSettings) -> AsyncIterator[Asker]:
    """Writes as another instance does, which knows of no replica."""
    asker = await Asker.of(far_behind.model_copy(update={"database_replica_url": None}))
    yield asker
    await asker.close()


@pytest.fixture
async def database(far_behind: DatabaseSettings) -> AsyncIterator[Database]:
    """Of the instance that is asked."""
    database = Database(far_behind, role="app")
    yield database
    await database.close()


async def test_the_state_of_a_conversation_is_never_an_old_one(asker: Asker, database: Database) -> None:
    talk, asked = Conversations(database), await asker.ask("What is new?")
    who, name = asker.principal, asked.conversation_id
    assert (await talk.get(who, name))["id"] == name
    assert [one["text"] for one in (await talk.messages(who, name, PAGE))["data"]] == ["What is new?"]
    assert [one["id"] for one in (await talk.runs(who, name, PAGE))["data"]] == [asked.run_id]
    assert [one["id"] for one in (await talk.page(who, PAGE, None))["data"]] == [name]
    assert (await talk.run(who, asked.run_id)).id == asked.run_id
    assert (await talk.approvals(who, asked.run_id))["data"] == []
    assert await Attachments(database, objects=None, max_bytes=1).of(who, name) == []  # type: ignore[arg-type]


async def test_an_agent_is_never_an_old_one_and_its_list_may_be(asker: Asker, database: Database) -> None:
    body = schemas.NewAgent(slug="helper", name="Helper", model="test/scripted")
    await Agents(asker.app).create(asker.principal, body, Repeatable(None, "", b""))
    agents, who = Agents(database), asker.principal
    assert (await agents.get(who, "helper")).name == "Helper"
    assert [one["version"] for one in (await agents.versions(who, "helper", PAGE))["data"]] == [1]
    assert (await agents.version(who, "helper", 1))["version"] == 1
    # The replica was asked all the time: what it knows is a list without it.
    assert (await agents.page(who, PAGE))["data"] == []
