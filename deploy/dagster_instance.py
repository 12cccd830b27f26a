"""The Dagster instance of an installation: its folder, its configuration, its three processes."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2

from deploy.component import Component
from deploy.dagster_web import DagsterWebError, location_trouble
from deploy.installation import Installation
from deploy.supervisor.run_folder import write_atomically

LOCATION = "headrace"
MODULE = "pipelines.definitions"
REPOSITORY = Path(__file__).parents[1]
BEATS_MISSED_SECONDS = 90.0
"""Three heartbeats of the daemon."""

_INSTANCE = """\
# Written by `headrace up`.
storage:
  custom:
    module: pipelines.storage
    class: LastingStorage
    config:
      postgres_db:
        hostname: {env: DAGSTER_PG_HOST}
        port: {env: DAGSTER_PG_PORT}
        username: hr_dagster
        password: {env: HEADRACE_DATABASE_DAGSTER_PASSWORD}
        db_name: dagster
        scheme: postgresql+psycopg2  # SQLAlchemy 2.1 would choose psycopg 3
        params:  # a server that went silent is noticed, as by `core.database.urls.libpq_dsn`
          {connect_timeout: 5, keepalives_idle: 10, keepalives_interval: 5, keepalives_count: 3, tcp_user_timeout: 20000}
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config: {dequeue_interval_seconds: 1}
concurrency:
  runs: {max_concurrent_runs: 2}
  pools: {default_limit: 1, granularity: run}
run_retries: {enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}
run_monitoring: {enabled: true, start_timeout_seconds: 180, max_runtime_seconds: 3600}
retention:  # a tick each few seconds is thousands of rows a day
  schedule: {purge_after_days: {skipped: 1, success: 7, failure: 30, started: -1}}
  sensor: {purge_after_days: {skipped: 1, success: 7, failure: 30, started: -1}}
sensors: {use_threads: true, num_workers: 4}
schedules: {use_threads: true, num_workers: 2}
telemetry: {enabled: false}
nux: {enabled: false}  # no dialog that asks for an e-mail address
"""


def write(installation: Installation) -> Path:
    """Render the instance's files and return its folder (`DAGSTER_HOME`)."""
    home = installation.folder / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    port = installation.port("dagster-code")
    workspace = (
        "# Written by `headrace up`.\nload_from:\n"
        f"  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: {LOCATION}}}\n"
    )
    for name, text in (("dagster.yaml", _INSTANCE), ("workspace.yaml", workspace)):
        write_atomically(home / name, text)
    return home


def environment(installation: Installation) -> dict[str, str]:
    """What Dagster needs beside the platform's settings."""
    hosts = urlsplit(installation.environment["HEADRACE_DATABASE_URL"]).netloc.split(",")
    host, _, port = hosts[0].partition(":")
    return {
        "DAGSTER_HOME": str(installation.folder / "dagster"),
        "DAGSTER_PG_HOST": host,
        "DAGSTER_PG_PORT": port or "5432",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        # As `start_timeout_seconds`. The first run waits until all definitions are imported, about 5 CPU-seconds:
        # beside ten busy processes on two cores that took more than the 60 s after which the daemon gave it up.
        "DAGSTER_GRPC_TIMEOUT_SECONDS": "180",
    }


def components(
    installation: Installation,
    base: dict[str, str],
    recover: Callable[[], None],
    *,
    code_needs: tuple[str, ...],
    daemon_needs: tuple[str, ...],
) -> list[Component]:
    """Code server, web server and daemon, which share one code server so that the code is loaded once.

    `recover` ends the runs of the code server before; nothing may start a run meanwhile.
    """
    home = installation.folder / "dagster"
    code, web = installation.port("dagster-code"), installation.port("dagster-web")
    python = [sys.executable, "-m"]
    workspace = ("-w", str(home / "workspace.yaml"))
    daemon_started = [time.time()]
    return [
        Component(
            name="dagster-code",
            # While a run is under way no signal ends it but KILL: short grace, then the whole group.
            # `dagster code-server` would be a second process in front, 70 MB, to load changed code anew.
            # Loaded when the web server asks for it, so that an error in it is shown there.
            argv=(*python, "pipelines.code_server", "--lazy-load-user-code", "-m", MODULE, "-d", str(REPOSITORY),
                  "-h", "127.0.0.1", "-p", str(code), "--use-python-environment-entry-point"),
            env=base,
            cwd=REPOSITORY,
            address=f"127.0.0.1:{code}",
            prepare=recover,
            ready=lambda: code_server_answers(code),
            needs=code_needs,
            stop_grace=3,
        ),
        Component(
            name="dagster-web",
            argv=(*python, "dagster_webserver", *workspace, "-h", "127.0.0.1", "-p", str(web)),
            env=base,
            cwd=home,
            address=f"http://127.0.0.1:{web}",
            ready=lambda: web_answers(web),
            trouble=lambda: web_trouble(web) or "",
            needs=("dagster-code",),
        ),
        Component(
            name="dagster-daemon",
            argv=(*python, "pipelines.daemon", "run", *workspace),
            env=base,
            cwd=home,
            prepare=lambda: daemon_started.__setitem__(0, time.time()),
            ready=lambda: daemon_beats(installation, since=daemon_started[0]),
            needs=("dagster-code", *daemon_needs),
        ),
    ]  # fmt: skip


def code_server_answers(port: int) -> bool:
    """True once it takes calls; whether the code could be loaded, the web server's readiness says."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def web_answers(port: int) -> bool:
    """True once the web server answers and our code location loaded without an error."""
    return web_trouble(port) is None


def web_trouble(port: int) -> str | None:
    """Why it is not ready, in one line; None where it is."""
    try:
        return location_trouble(port)
    except DagsterWebError as error:
        return str(error)


def daemon_beats(installation: Installation, *, since: float) -> bool:
    """True while the sensor daemon of this start writes heartbeats (one each 30 s)."""
    env = {**environment(installation), **installation.environment}
    try:
        connection = psycopg2.connect(
            host=env["DAGSTER_PG_HOST"],
            port=env["DAGSTER_PG_PORT"],
            user="hr_dagster",
            password=env["HEADRACE_DATABASE_DAGSTER_PASSWORD"],
            dbname="dagster",
            connect_timeout=2,
        )
    except psycopg2.OperationalError:
        return False
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select 1 from daemon_heartbeats where daemon_type = 'SENSOR' and timestamp >= to_timestamp(%s) at time zone 'UTC'",
                (oldest_beat(since, time.time()),),
            )
            return cursor.fetchone() is not None
    except psycopg2.Error:
        return False
    finally:
        connection.close()


def oldest_beat(since: float, now: float) -> float:
    """A heartbeat before this (seconds since 1970) is of an earlier start, or of a daemon that hangs."""
    return max(since, now - BEATS_MISSED_SECONDS)


def inherited() -> dict[str, str]:
    """What a process of ours gets of the caller's environment."""
    names = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")
    return {name: os.environ[name] for name in names if name in os.environ}
