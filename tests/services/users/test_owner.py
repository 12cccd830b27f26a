"""The first account: made once, whoever starts at the same time, and only with a password worth the name."""

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.settings import CacheSettings, DatabaseSettings
from deploy.component import Component
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running, start, stop
from tests.services.process import OWNER_PASSWORD, environment, service
from tests.services.users.conftest import Caller, Running, actions


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """A migrated database in which nobody has an account."""
    folder, port, password = tmp_path_factory.mktemp("fresh"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@pytest.mark.parametrize(
    ("password", "said"),
    [
        (None, "set HEADRACE_OWNER_PASSWORD"),
        ("changeme", "known default"),
        ("short", "at least 12 characters"),
    ],
)
def test_no_account_without_a_usable_password(
    fresh: DatabaseSettings, valkey: CacheSettings, tmp_path: Path, password: str | None, said: str
) -> None:
    variables = environment(tmp_path, fresh, valkey, users_port=free_port(), gateway_port=free_port())
    del variables["HEADRACE_OWNER_PASSWORD"]
    if password is not None:
        variables["HEADRACE_OWNER_PASSWORD"] = password
    component = service("users", free_port(), variables)
    ended = subprocess.run(
        component.argv, env=dict(component.env), cwd=component.cwd, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr


async def test_two_instances_that_start_at_once_make_one_owner(
    fresh: DatabaseSettings, valkey: CacheSettings, tmp_path: Path
) -> None:
    variables = environment(tmp_path, fresh, valkey, users_port=free_port(), gateway_port=free_port())
    components = [service("users", free_port(), variables) for _ in range(2)]

    def started(number: int, component: Component) -> subprocess.Popen[bytes]:
        return start(component, tmp_path / f"log-{number}")

    processes = await asyncio.gather(
        *(asyncio.to_thread(started, number, one) for number, one in enumerate(components))
    )
    try:
        async with aiohttp.ClientSession() as http:
            for component in components:
                running_one = Running(component.address, variables, tmp_path / "log-0")
                assert (await Caller(http, running_one, {}).login()).status == 200
    finally:
        for component, process in zip(components, processes, strict=True):
            await asyncio.to_thread(stop, component, process)
    logs = [(tmp_path / f"log-{number}").read_text() for number in range(2)]
    assert sum(log.count("owner account created") for log in logs) == 1

    system = Database(fresh, role="system")
    try:
        async with system.reader() as connection:
            people = (await connection.execute(text("select id, platform_owner from person"))).all()
            organizations = (await connection.execute(text("select slug from organisation"))).scalars().all()
            roles = (await connection.execute(text("select role from membership"))).scalars().all()
        assert [one.platform_owner for one in people] == [True]
        assert (organizations, roles) == (["main"], ["owner"])
        assert (await actions(system, people[0].id))[0] == "owner.create"
    finally:
        await system.close()


async def test_password_setting_is_read_only_once(
    fresh: DatabaseSettings, valkey: CacheSettings, tmp_path: Path
) -> None:
    """Comes after the race: the account exists, and another password in the settings changes nothing."""
    variables = environment(tmp_path, fresh, valkey, users_port=free_port(), gateway_port=free_port())
    variables["HEADRACE_OWNER_PASSWORD"] = "another one than before"
    component = service("users", free_port(), variables)
    with running(component, tmp_path / "log"):
        async with aiohttp.ClientSession() as http:
            caller = Caller(http, Running(component.address, variables, tmp_path / "log"), {})
            assert (await caller.login()).status == 401
            assert (await caller.login(OWNER_PASSWORD)).status == 200
