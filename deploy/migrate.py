"""From an empty PostgreSQL server to the current schema, and from an older one too.

`ensure_roles` needs a superuser; an installation whose database administrator has made roles and
databases already runs `upgrade` alone.
"""

from collections.abc import Mapping
from pathlib import Path

import psycopg2
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg2 import sql

from core.database import role_url
from core.settings import DatabaseSettings

ROLES: Mapping[str, str] = {
    # noinherit: the owner may hand functions to hr_system without gaining its rights by itself.
    "hr_owner": "login noinherit",
    "hr_app": "login noinherit nobypassrls",
    "hr_system": "login noinherit nobypassrls",
    "hr_dagster": "login",
}
DAGSTER_DATABASE = "dagster"


def ensure_roles(superuser_dsn: str, database: str, passwords: Mapping[str, str]) -> None:
    """Create roles and databases where they are missing and set the passwords. Safe to repeat.

    Args:
        superuser_dsn: libpq address of a superuser, database `postgres`.
        database: name of the platform's database.
        passwords: role name to password, for each of `ROLES`.
    """
    connection = psycopg2.connect(superuser_dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for role, options in ROLES.items():
                cursor.execute("select 1 from pg_roles where rolname = %s", (role,))
                verb = "alter" if cursor.fetchone() else "create"
                cursor.execute(
                    sql.SQL("{} role {} {} password {}").format(
                        sql.SQL(verb), sql.Identifier(role), sql.SQL(options), sql.Literal(passwords[role])
                    )
                )
            cursor.execute("grant hr_system to hr_owner")
            for name, owner in ((database, "hr_owner"), (DAGSTER_DATABASE, "hr_dagster")):
                cursor.execute("select 1 from pg_database where datname = %s", (name,))
                if not cursor.fetchone():
                    cursor.execute(
                        sql.SQL("create database {} owner {} template template0 encoding 'UTF8'").format(
                            sql.Identifier(name), sql.Identifier(owner)
                        )
                    )
                cursor.execute(sql.SQL("revoke all on database {} from public").format(sql.Identifier(name)))
            for role, rights in (("hr_app", "connect"), ("hr_system", "connect, temporary")):
                cursor.execute(
                    sql.SQL("grant {} on database {} to {}").format(
                        sql.SQL(rights), sql.Identifier(database), sql.Identifier(role)
                    )
                )
    finally:
        connection.close()
    connection = psycopg2.connect(superuser_dsn, dbname=database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("alter schema public owner to hr_owner")
            cursor.execute("grant usage on schema public to hr_app, hr_system")
            # A function can only be handed to a role that may create in its schema.
            cursor.execute("grant create on schema public to hr_system")
    finally:
        connection.close()


def revisions() -> list[str]:
    """All of them, the oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


def newest_revision() -> str:
    """The revision that this version of the code needs."""
    return revisions()[-1]


def _config() -> Config:
    return Config(str(Path(__file__).parent / "migrations" / "alembic.ini"))


def upgrade(settings: DatabaseSettings, revision: str = "head") -> None:
    """Bring the schema to a revision, the newest where left out (role `hr_owner`)."""
    config = _config()
    config.attributes["url"] = role_url(settings, "owner", driver="psycopg2")
    command.upgrade(config, revision)
