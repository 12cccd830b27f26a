"""Database URLs for each role, always with the driver named (SQLAlchemy 2.1 changed the default)."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from sqlalchemy import URL

from core.settings import DatabaseSettings

Role = Literal["owner", "app", "system"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is: hosts to try in order, and its name."""

    hosts: tuple[str, ...]
    """`host:port`, at least one."""
    name: str


def address(settings: DatabaseSettings, *, replica: bool = False) -> Address:
    """The primary's address, or the replica's where one is set and wanted.

    Raises:
        ValueError: where the configured URL is not a PostgreSQL URL or carries credentials.
    """
    text = (
        settings.database_replica_url if replica and settings.database_replica_url else settings.database_url
    )
    url = urlsplit(text)
    name = url.path.strip("/")
    if url.scheme not in {"postgresql", "postgres"} or not url.netloc or not name or url.query:
        raise ValueError(
            "HEADRACE_DATABASE_URL must be `postgresql://host:port/name`, several hosts comma separated"
        )
    if "@" in url.netloc:
        raise ValueError(
            "HEADRACE_DATABASE_URL must not carry credentials; they come from HEADRACE_DATABASE_*_PASSWORD"
        )
    hosts = [host if _has_port(host) else f"{host}:5432" for host in url.netloc.split(",")]
    return Address(tuple(hosts), name)


def role_url(
    settings: DatabaseSettings, role: Role, *, driver: str = "asyncpg", replica: bool = False
) -> URL:
    """The URL with which SQLAlchemy reaches the database as `role`. Raises: ValueError as `address` does."""
    where = address(settings, replica=replica)
    url = URL.create(
        f"postgresql+{driver}",
        username=f"hr_{role}",
        password=_password(settings, role),
        database=where.name,
    )
    if len(where.hosts) > 1:
        return url.set(query={"host": where.hosts})
    host, _, port = where.hosts[0].rpartition(":")
    return url.set(host=host.strip("[]"), port=int(port))


def dsn(settings: DatabaseSettings, role: Role, *, replica: bool = False) -> str:
    """A plain `postgresql://` address with credentials, for asyncpg and libpq.

    Of several hosts the one that accepts writes is taken, or any for the replica.
    """
    where = address(settings, replica=replica)
    password = quote(_password(settings, role), safe="")
    text = f"postgresql://hr_{role}:{password}@{','.join(where.hosts)}/{where.name}"
    return text if replica or len(where.hosts) == 1 else f"{text}?target_session_attrs=primary"


def _password(settings: DatabaseSettings, role: Role) -> str:
    passwords = {
        "owner": settings.database_owner_password,
        "app": settings.database_app_password,
        "system": settings.database_system_password,
    }
    password = passwords[role]
    if password is None:
        raise ValueError(
            f"HEADRACE_DATABASE_{role.upper()}_PASSWORD is not set; only migrations have use for it"
        )
    return password.get_secret_value()


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")


def libpq_dsn(settings: DatabaseSettings, role: Role, *, seconds: float = 120) -> str:
    """The same for psycopg2, with bounds: a server that went silent is noticed, a statement ends after `seconds`."""
    url = role_url(settings, role).set(drivername="postgresql")
    return url.update_query_dict(
        {
            "connect_timeout": "5",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "tcp_user_timeout": "20000",
            "options": f"-cstatement_timeout={int(seconds * 1000)}",
        }
    ).render_as_string(hide_password=False)
