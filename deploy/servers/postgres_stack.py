"""PostgreSQL 15 from Debian: a primary and a streaming replica, each one process group on loopback.

Superuser and replication use scram over TCP; no password is ever an argument of a process.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2 import sql

from deploy.component import Component
from deploy.servers.postgres import SUPERUSER, answers, as_unprivileged

REPLICATION_ROLE, SLOT = "hr_replication", "replica"
_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_COMMON = (
    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200",
    "-c", "shared_buffers=64MB", "-c", "max_wal_size=512MB", "-c", "log_min_messages=warning", "-c", "jit=off",
    # a dead replica may hold back this much, then it loses its slot and is cloned again
    "-c", "wal_level=replica", "-c", "max_slot_wal_keep_size=2GB",
    # the default of 5 s is how long a replica stands still after the primary is back
    "-c", "wal_retrieve_retry_interval=500ms",
    # The default of 60 s is how long a replica whose primary is gone without a word believes that it is current;
    # answers may be ten behind (`core.database.Database`).
    "-c", "wal_receiver_timeout=5s",
)  # fmt: skip


@dataclass(frozen=True)
class Account:
    """As whom PostgreSQL's programs run: what to put before them, and who must own their files."""

    prefix: tuple[str, ...]
    owner: tuple[int, int] | None = None

    def give(self, path: Path) -> None:
        """Hand a file or folder of ours to the account."""
        if self.owner is not None:
            os.chown(path, *self.owner)

    def check_reach(self, folder: Path) -> None:
        """Refuse a folder that the account cannot enter.

        Raises:
            RuntimeError: naming the folder.
        """
        if self.owner is None:
            return
        if subprocess.run([*self.prefix, "test", "-x", str(folder)], check=False).returncode != 0:
            raise RuntimeError(
                f"user postgres cannot enter {folder}, and user namespaces are switched off here; "
                "choose a data folder outside root's home (--data), or start Headrace as an ordinary user"
            )


def ordinary_account() -> Account:
    """Ourselves; as root a user namespace, or the system's user `postgres` where namespaces are off.

    Raises:
        RuntimeError: where none of them works.
    """
    try:
        return Account(as_unprivileged())
    except RuntimeError:
        return system_account()


def system_account() -> Account:
    """The user `postgres` of Debian's package; only root can become it.

    Raises:
        RuntimeError: where there is no such user.
    """
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise RuntimeError(
            "there is no system user `postgres`; `headrace provision` as root installs it"
        ) from None
    prefix = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--")
    return Account(prefix, (user.pw_uid, user.pw_gid))


def primary(
    data: Path, port: int, superuser_password: str, *, binaries: Path, account: Account | None = None
) -> Component:
    """The primary with its cluster in `data`/postgres, made at the first start."""
    folder, user = data / "postgres", account or ordinary_account()

    def prepare() -> None:
        if (folder / "PG_VERSION").exists():
            return
        with _work_folder(folder, user) as work:
            password = _secret(work / "password", superuser_password, user)
            _run(
                user, binaries / "initdb", "-D", work / "data", "-U", SUPERUSER, "--auth=scram-sha-256",
                f"--pwfile={password}", "--locale=C.UTF-8", "-E", "UTF8", "--data-checksums",
            )  # fmt: skip
            (work / "data").rename(folder)

    return Component(
        name="postgres",
        argv=(*user.prefix, str(binaries / "postgres"), "-D", str(folder), "-p", str(port), *_COMMON),
        env=_ENVIRONMENT,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: answers(port, superuser_password),
        stop_signal=signal.SIGINT,
        stop_grace=20,
    )


def replica(
    data: Path,
    port: int,
    primary_port: int,
    *,
    superuser_password: str,
    replication_password: str,
    binaries: Path,
    account: Account | None = None,
) -> Component:
    """The streaming replica of the primary on this machine, its clone in `data`/postgres-replica.

    Every start looks at the primary: a replica that can no longer follow it (slot gone, other
    cluster) is cloned again. While the primary is away an existing clone just starts; it answers
    reads, but is ready only when it receives changes.
    """
    folder, password_file = data / "postgres-replica", data / "postgres-replica.pgpass"
    user = account or ordinary_account()
    source = (
        f"host=127.0.0.1 port={primary_port} user={REPLICATION_ROLE} passfile={_quoted(password_file)} "
        "application_name=replica connect_timeout=5"
    )

    def prepare() -> None:
        data.mkdir(parents=True, exist_ok=True)
        _secret(password_file, f"127.0.0.1:*:*:{REPLICATION_ROLE}:{replication_password}\n", user)
        cloned = (folder / "standby.signal").exists()
        try:
            connection = _superuser(primary_port, superuser_password)
        except psycopg2.OperationalError as error:
            if cloned:
                return
            raise RuntimeError(
                f"the replica needs the primary at 127.0.0.1:{primary_port}: {error}"
            ) from error
        try:
            _ensure_role(connection, replication_password)
            if cloned and _can_follow(connection, _system_identifier(folder, binaries, user)):
                return
            _new_slot(connection)
        finally:
            connection.close()
        with _work_folder(folder, user) as work:
            _run(
                user, binaries / "pg_basebackup", "-d", source, "-D", work / "data", "-X", "stream", "-c", "fast",
                "-S", SLOT,
            )  # fmt: skip
            signal_file = work / "data" / "standby.signal"
            signal_file.touch(mode=0o600)
            user.give(signal_file)
            shutil.rmtree(folder, ignore_errors=True)
            (work / "data").rename(folder)

    return Component(
        name="postgres-replica",
        argv=(
            *user.prefix, str(binaries / "postgres"), "-D", str(folder), "-p", str(port), *_COMMON,
            "-c", f"primary_conninfo={source}", "-c", f"primary_slot_name={SLOT}", "-c", "hot_standby_feedback=on",
        ),
        env=_ENVIRONMENT,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: streams(port, superuser_password),
        needs=("postgres",),
        stop_signal=signal.SIGINT,
        stop_grace=20,
    )  # fmt: skip


def streams(port: int, superuser_password: str) -> bool:
    """True while the replica on loopback answers and receives the primary's changes."""
    try:
        connection = _superuser(port, superuser_password)
    except psycopg2.OperationalError:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("select exists (select from pg_stat_wal_receiver where status = 'streaming')")
            row = cursor.fetchone()
        return bool(row and row[0])
    except psycopg2.Error:
        return False
    finally:
        connection.close()


@contextmanager
def _work_folder(target: Path, user: Account) -> Iterator[Path]:
    """A temporary folder beside `target`, so that what is made there can be renamed to it in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    user.check_reach(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        user.give(Path(name))
        yield Path(name)


def _secret(file: Path, text: str, user: Account) -> Path:
    """Write a file of mode 0600 that the account can read."""
    file.touch(mode=0o600)
    file.write_text(text)
    user.give(file)
    return file


def _run(user: Account, *argv: str | Path) -> str:
    done = subprocess.run(
        [*user.prefix, *map(str, argv)],
        env=_ENVIRONMENT,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(argv[0]).name} failed: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def _quoted(path: Path) -> str:
    """A value of a libpq connection string."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _superuser(port: int, password: str) -> "psycopg2.extensions.connection":
    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user=SUPERUSER, password=password, dbname="postgres", connect_timeout=2
    )
    connection.autocommit = True
    return connection


def _ensure_role(connection: "psycopg2.extensions.connection", password: str) -> None:
    role = sql.Identifier(REPLICATION_ROLE)
    with connection.cursor() as cursor:
        cursor.execute("select 1 from pg_roles where rolname = %s", (REPLICATION_ROLE,))
        verb = "alter" if cursor.fetchone() else "create"
        cursor.execute(
            sql.SQL(verb + " role {} login replication password {}").format(role, sql.Literal(password))
        )


def _can_follow(connection: "psycopg2.extensions.connection", identifier: str) -> bool:
    """True where the clone is of this cluster and the primary still keeps all that it needs."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select exists (select from pg_replication_slots where slot_name = %s and wal_status <> 'lost')"
            " and (select system_identifier::text from pg_control_system()) = %s",
            (SLOT, identifier),
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def _system_identifier(folder: Path, binaries: Path, user: Account) -> str:
    lines = _run(user, binaries / "pg_controldata", "-D", folder).splitlines()
    return next((line.split()[-1] for line in lines if line.startswith("Database system identifier")), "")


def _new_slot(connection: "psycopg2.extensions.connection") -> None:
    """Drop the slot, ending a sender that an orphan still holds, and make it again with WAL kept from now on."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots"
            " where slot_name = %s and active_pid is not null",
            (SLOT,),
        )
        cursor.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s",
            (SLOT,),
        )
        cursor.execute("select pg_create_physical_replication_slot(%s, true)", (SLOT,))
