"""Each process starts with the secrets it has use for, and with no others."""

from pathlib import Path

import pytest

from core.database import dsn
from core.settings import DatabaseSettings, ServiceSettings
from deploy.components import components, environment
from deploy.installation import load, prepare
from deploy.session import settings_of

SECRETS = {
    "OWNER_PASSWORD": {"users"},
    "JWT_PRIVATE_KEY_FILE": {"users"},
    "DATABASE_OWNER_PASSWORD": set(),
    "DATABASE_DAGSTER_PASSWORD": {"dagster-code", "dagster-web", "dagster-daemon"},
}


@pytest.mark.parametrize("setting", SECRETS)
def test_a_secret_goes_only_where_it_is_used(tmp_path: Path, setting: str) -> None:
    installation = prepare(tmp_path, None, 0, {})
    assert installation.environment[f"HEADRACE_{setting}"]
    holders = {part.name for part in components(installation) if f"HEADRACE_{setting}" in part.env}
    assert holders == SECRETS[setting]


def test_only_the_task_that_migrates_has_the_owner_role(tmp_path: Path) -> None:
    installation = prepare(tmp_path, None, 0, {})
    assert "HEADRACE_DATABASE_OWNER_PASSWORD" in environment(installation, "database")
    assert "HEADRACE_DATABASE_OWNER_PASSWORD" not in environment(installation, "topology")


def test_without_the_owner_role_only_migrations_are_refused() -> None:
    settings = DatabaseSettings(
        database_url="postgresql://127.0.0.1:1/x",
        database_app_password="0123456789abcdef",
        database_system_password="0123456789abcdef",
    )
    assert dsn(settings, "app").startswith("postgresql://hr_app:")
    with pytest.raises(ValueError, match="HEADRACE_DATABASE_OWNER_PASSWORD is not set"):
        dsn(settings, "owner")


def test_replicas_are_processes_on_ports_of_their_own(tmp_path: Path) -> None:
    installation = prepare(tmp_path, None, 50, {}, replicas={"agents": 3, "gateway": 2, "users": 1})
    parts = {part.name: part for part in components(installation)}
    assert {name for name in parts if name.startswith(("agents", "gateway", "users"))} == {
        "agents", "agents-2", "agents-3", "gateway", "gateway-2", "users",
    }  # fmt: skip
    addresses = [part.address for part in parts.values() if part.address]
    assert len({*addresses}) == len(addresses)
    assert parts["agents-3"].address == "http://127.0.0.1:8252"
    assert parts["agents-3"].env["HEADRACE_PORT"] == "8252"
    spools = {parts[name].env["HEADRACE_SPOOL_DIR"] for name in ("gateway", "gateway-2")}
    assert len(spools) == 2
    services = settings_of(installation, ServiceSettings)
    assert services.addresses("agents") == tuple(f"http://127.0.0.1:{port}" for port in (8052, 8152, 8252))
    assert services.addresses("users") == ("http://127.0.0.1:8051",)
    assert load(tmp_path).replicas == {"agents": 3, "gateway": 2}
    # Said at each start: the next one without it has one of each.
    assert prepare(tmp_path, None, None, {}).replicas == {}


def test_replicas_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="'agents' is not of the form"):
        ServiceSettings(replicas="agents").addresses("agents")
