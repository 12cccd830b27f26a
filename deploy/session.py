"""From an installation to what commands call: its API as the owner, its seams with its settings."""

from typing import TypeVar

import psycopg2

from core.database.urls import libpq_dsn
from core.settings import DatabaseSettings, Settings
from deploy.client import Operator
from deploy.installation import Installation

AnySettings = TypeVar("AnySettings", bound=Settings)


def settings_of(installation: Installation, kind: type[AnySettings]) -> AnySettings:
    """The settings of one system as the installation's processes have them."""
    values = {
        name.removeprefix("HEADRACE_").lower(): value for name, value in installation.environment.items()
    }
    return kind.model_validate({name: values[name] for name in kind.model_fields if name in values})


def operator(installation: Installation) -> Operator:
    """The owner of the installation, through its gateway."""
    return Operator(
        installation.environment["HEADRACE_GATEWAY_URL"],
        installation.environment["HEADRACE_OWNER_EMAIL"],
        installation.environment["HEADRACE_OWNER_PASSWORD"],
        installation.folder / "tenant-keys.json",
    )


def billed(database: DatabaseSettings) -> list[str]:
    """Slugs of the organisations that an invoice was issued for."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select slug from organisation o where exists (select from invoice i where i.tenant_id = o.id) order by 1"
            )
            return [slug for (slug,) in cursor.fetchall()]
    finally:
        connection.close()


def owner_id(database: DatabaseSettings) -> str | None:
    """Id of the platform's owner, as whom commands act that need no service; None before the first start."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select id from person where platform_owner order by created_at limit 1")
            row = cursor.fetchone()
    finally:
        connection.close()
    return None if row is None else str(row[0])
