"""Addresses of the database: by role, without credentials in the setting, one host or several."""

import pytest

from core.database import dsn, role_url
from core.settings import DatabaseSettings

APP = "p@ss/word:1%&"


def settings(url: str, replica: str | None = None) -> DatabaseSettings:
    return DatabaseSettings(
        database_url=url,
        database_replica_url=replica,
        database_owner_password="0123456789abcdef",
        database_app_password=APP,
        database_system_password="fedcba9876543210",
    )


def test_role_and_password_are_put_in() -> None:
    url = role_url(settings("postgresql://db.example:6543/headrace"), "app")
    assert url.drivername == "postgresql+asyncpg"
    assert (url.host, url.port, url.database) == ("db.example", 6543, "headrace")
    assert (url.username, url.password) == ("hr_app", APP)
    assert APP not in str(url)


def test_drivers_get_odd_passwords_whole() -> None:
    assert dsn(settings("postgresql://h:1/d"), "app") == "postgresql://hr_app:p%40ss%2Fword%3A1%25%26@h:1/d"


def test_the_usual_port_may_be_left_out() -> None:
    assert role_url(settings("postgresql://h/d"), "system").port == 5432
    assert role_url(settings("postgresql://[::1]/d"), "system").host == "::1"
    assert role_url(settings("postgresql://[::1]:7/d"), "system").port == 7


def test_of_several_hosts_the_writing_one_is_taken() -> None:
    several = settings("postgresql://a:1,b,c:3/d", replica="postgresql://r:9/d")
    assert role_url(several, "owner", driver="psycopg2").query["host"] == ("a:1", "b:5432", "c:3")
    assert dsn(several, "system").endswith("@a:1,b:5432,c:3/d?target_session_attrs=primary")
    assert dsn(several, "system", replica=True).endswith("@r:9/d")
    assert role_url(several, "app", replica=True).host == "r"


def test_without_a_replica_the_primary_answers() -> None:
    assert role_url(settings("postgresql://h:1/d"), "app", replica=True).host == "h"


@pytest.mark.parametrize(
    "url",
    ["mysql://h/d", "postgresql://h", "postgresql:///d", "postgresql://h/d?sslmode=off", "h:5432/d", ""],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="HEADRACE_DATABASE_URL must be"):
        role_url(settings(url), "app")


def test_credentials_in_the_address_are_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="must not carry credentials") as refused:
        dsn(settings("postgresql://me:hunter2@h/d"), "app")
    assert "hunter2" not in str(refused.value)
