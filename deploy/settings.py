"""What only the launcher reads: how it reaches servers that somebody else runs."""

from typing import ClassVar

from pydantic import Field, SecretStr

from core.settings import Settings


class LauncherSettings(Settings):
    """Only for `headrace up` with servers that are given by URL."""

    title: ClassVar[str] = "Launcher"
    database_admin_url: SecretStr | None = Field(
        default=None,
        description="`postgresql://superuser:password@host:port/postgres`: lets `headrace up` make roles and databases on a server given by HEADRACE_DATABASE_URL. Empty: they exist already.",
    )
    database_dagster_password: SecretStr | None = Field(
        default=None, description="Password of role `hr_dagster`, owner of the database `dagster`."
    )
