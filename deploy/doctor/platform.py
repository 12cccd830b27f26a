"""The installation: its files, its processes, its ports, its schema."""

from collections.abc import Iterator

import psycopg2

from core.database import dsn
from core.settings import DatabaseSettings
from deploy.components import components as all_components
from deploy.doctor.finding import Finding, Level
from deploy.installation import Installation
from deploy.migrate import newest_revision
from deploy.session import settings_of
from deploy.supervisor.logs import tail
from deploy.supervisor.processes import alive, port_owner
from deploy.supervisor.status import rows_of

SECRET_FILES = ("secrets.json", "headrace.env", "jwt.pem")
MANY_RESTARTS = 5


def files(installation: Installation) -> Iterator[Finding]:
    """Secrets are there and nobody else can read them."""
    for name in SECRET_FILES:
        file = installation.folder / name
        if not file.exists():
            yield Finding(
                "secrets", Level.FAIL, f"{file} is missing", "restore it from a backup of the data folder"
            )
        elif file.stat().st_mode & 0o077:
            yield Finding("secrets", Level.FAIL, f"{file} can be read by others", f"chmod 600 {file}")
        else:
            yield Finding("secrets", Level.OK, f"{file} is readable by its owner only")


def orphans(installation: Installation) -> Iterator[Finding]:
    """Processes whose launcher is gone."""
    if installation.run.locked():
        launcher = installation.run.launcher()
        yield Finding("launcher", Level.OK, f"runs, pid {launcher.pid if launcher else 'unknown'}")
        return
    left = [name for name, identity in installation.run.recorded().items() if alive(identity)]
    if left:
        yield Finding(
            "launcher",
            Level.FAIL,
            f"gone, but it left running: {', '.join(left)}",
            "`headrace up` ends them and starts anew; `headrace down` only ends them",
        )
    else:
        yield Finding("launcher", Level.WARN, "does not run", "start it with `headrace up`")


def ports(installation: Installation) -> Iterator[Finding]:
    """While nothing runs: whether it could start."""
    if installation.run.locked() or any(alive(identity) for identity in installation.run.recorded().values()):
        return
    for component in all_components(installation):
        number = component.address.rpartition(":")[2]
        if number.isdigit() and (owner := port_owner(int(number))):
            yield Finding(
                "ports",
                Level.FAIL,
                f"port {number} of {component.name} is taken by {owner}",
                "end that process, or start with another --port-base",
            )
            break
    else:
        yield Finding("ports", Level.OK, "all free")


def components(installation: Installation) -> Iterator[Finding]:
    """What does not run as it should, with the end of its log."""
    if not installation.run.locked():
        return
    for row in rows_of(installation.folder):
        name, state = row["name"], row["state"]
        if state != "ready":
            last = " | ".join(line.strip()[:200] for line in tail(installation.logs / f"{name}.log", 2))
            detail = f"{state}: {row['reason'] or 'still starting'}" + (
                f"; its log ends: {last}" if last else ""
            )
            yield Finding(name, Level.FAIL, detail, f"`headrace logs {name}` shows more")
        elif row["restarts"] >= MANY_RESTARTS:
            yield Finding(
                name,
                Level.WARN,
                f"restarted {row['restarts']} times, last: {row['reason']}",
                f"`headrace logs {name}`",
            )
        else:
            yield Finding(name, Level.OK, f"ready at {row['address'] or 'no port'}, {row['rss_mb']:.0f} MB")


def database(installation: Installation) -> Iterator[Finding]:
    """Version of the server and of the schema."""
    if not installation.run.locked():
        return
    connection = psycopg2.connect(
        dsn(settings_of(installation, DatabaseSettings), "owner"), connect_timeout=3
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('server_version'), version_num from alembic_version")
            server, schema = map(str, cursor.fetchone())
    finally:
        connection.close()
    newest = newest_revision()
    if int(server.partition(".")[0]) < 15:
        yield Finding("database", Level.FAIL, f"PostgreSQL {server}", "use PostgreSQL 15 or newer")
    elif schema != newest:
        yield Finding(
            "database",
            Level.FAIL,
            f"schema {schema}, this version needs {newest}",
            "restart with `headrace up`",
        )
    else:
        yield Finding("database", Level.OK, f"PostgreSQL {server}, schema {schema}")
