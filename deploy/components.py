"""What runs in each profile, in one table. A new service is one name in `SERVICES`."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.metadata import version

from deploy import dagster_instance, provision
from deploy.component import Component
from deploy.installation import Installation
from deploy.servers.kafka import kafka
from deploy.servers.milvus_lite import milvus_lite
from deploy.servers.minio import minio
from deploy.servers.postgres import postgres
from deploy.servers.postgres_stack import primary, replica
from deploy.servers.rabbitmq import names as rabbitmq_names
from deploy.servers.rabbitmq import rabbitmq
from deploy.servers.redis.group import SENTINELS, Group
from deploy.servers.redis.group import SERVERS as REDIS_SERVERS
from deploy.servers.valkey import valkey
from deploy.supervisor.supervisor import Task

SERVICES = ("users", "billing", "lookup", "gateway", "relay", "extractive", "agents", "memory", "ws", "web")
"""Each is `python -m services.<name>`, reads only its environment and drains on TERM."""

DATABASE, TOPOLOGY = "database", "topology"
"""The two tasks of every `up`: roles and migrations; topics and buckets."""


_DAGSTER = frozenset({"dagster-code", "dagster-web", "dagster-daemon"})
_ONLY_FOR: Mapping[str, frozenset[str]] = {
    "HEADRACE_OWNER_EMAIL": frozenset({"users"}),
    "HEADRACE_OWNER_PASSWORD": frozenset({"users"}),
    "HEADRACE_JWT_PRIVATE_KEY_FILE": frozenset({"users"}),
    "HEADRACE_WEB_KEY": frozenset({"web"}),
    "HEADRACE_PAGES_KEY": frozenset({"web", "gateway"}),
    "HEADRACE_PROVIDERS": frozenset({"agents"}),
    "HEADRACE_DATABASE_OWNER_PASSWORD": frozenset({DATABASE}),
    "HEADRACE_DATABASE_DAGSTER_PASSWORD": frozenset({DATABASE, *_DAGSTER}),
}
"""Secrets that few have use for, and who; everybody else starts without them."""
_ONLY: Mapping[str, frozenset[str]] = {
    "web": frozenset(
        f"HEADRACE_{name}"
        for name in ("WEB_KEY", "PAGES_KEY", "WEB_URL", "GATEWAY_URL", "HOST", "PORT_BASE", "LOG_LEVEL")
    ),
}
"""Who gets nothing but these: what stands in the open holds no key of the platform."""


def components(installation: Installation) -> list[Component]:
    """Everything that `up` starts for this installation, servers first."""
    servers = (
        _stack_servers(installation) if installation.profile == "stack" else _embedded_servers(installation)
    )
    cache = {"valkey", *SENTINELS}  # sentinels need their servers
    needs = (DATABASE, TOPOLOGY, *(server.name for server in servers if server.name in cache))
    services = [
        _service(installation, name, needs, instance)
        for name in SERVICES
        for instance in range(1, installation.replicas.get(name, 1) + 1)
    ]
    base = environment(installation, "dagster-code")
    dagster = dagster_instance.components(
        installation,
        base,
        lambda: _before_code_server(installation, base),
        code_needs=(DATABASE,),
        daemon_needs=(TOPOLOGY,),
    )
    return [*servers, *services, *dagster]


def tasks(installation: Installation, servers: list[Component]) -> list[Task]:
    """What is done once between servers and services."""
    present = {server.name for server in servers}
    return [
        Task(DATABASE, lambda: _ensure(installation, DATABASE), tuple({"postgres"} & present)),
        Task(
            TOPOLOGY,
            lambda: _ensure(installation, TOPOLOGY),
            (DATABASE, *sorted({"kafka", "minio", "rabbitmq"} & present)),
        ),
    ]


def environment(installation: Installation, name: str) -> dict[str, str]:
    """The whole environment of the process or task `name`: what it has use for, no secret of others."""
    settings = {
        setting: value
        for setting, value in installation.environment.items()
        if (setting not in _ONLY_FOR or name in _ONLY_FOR[setting])
        and (name not in _ONLY or setting in _ONLY[name])
    }
    return {
        **dagster_instance.inherited(),
        **settings,
        **(dagster_instance.environment(installation) if name in _DAGSTER else {}),
        "PYTHONUNBUFFERED": "1",
        "TZ": "UTC",
    }


def own_servers(installation: Installation) -> list[str]:
    """Which real servers run here, as `deploy.provision` names them; the others have a URL elsewhere."""
    servers = {
        "database": "postgres",
        "cache": "redis",
        "eventlog": "kafka",
        "objects": "minio",
        "queue": "rabbitmq",
    }
    return [server for seam, server in servers.items() if seam not in installation.external]


def _embedded_servers(installation: Installation) -> list[Component]:
    secret, folder = installation.secrets, installation.folder
    servers = []
    if "database" not in installation.external:
        servers.append(postgres(folder, installation.port("postgres"), secret["postgres"]))
    if "cache" not in installation.external:
        servers.append(valkey(folder, installation.port("valkey"), secret["cache"]))
    return servers + _vectors(installation)


def _stack_servers(installation: Installation) -> list[Component]:
    programs = provision.programs(own_servers(installation))
    secret, folder, port = installation.secrets, installation.folder, installation.port
    servers = []
    if "database" not in installation.external:
        servers += [
            primary(folder, port("postgres"), secret["postgres"], binaries=programs.postgres),
            replica(
                folder, port("postgres-replica"), port("postgres"), superuser_password=secret["postgres"],
                replication_password=secret["hr_replication"], binaries=programs.postgres,
            ),
        ]  # fmt: skip
    if "cache" not in installation.external:
        ports = {name: port(name) for name in (*REDIS_SERVERS, *SENTINELS)}
        servers += Group(folder, ports, secret["cache"], programs.redis_server).components()
    if "eventlog" not in installation.external:
        servers.append(
            kafka(
                folder, port("kafka"), port("kafka-controller"), java=programs.java, jars=programs.kafka_jars
            )
        )
    if "objects" not in installation.external:
        servers.append(
            minio(
                folder, port("minio"), root_user=secret["minio_user"], root_password=secret["minio_password"],
                kms_key=secret["minio_kms_key"], server=programs.minio,
            )
        )  # fmt: skip
    if "queue" not in installation.external:
        servers += [
            rabbitmq_names(folder, port("rabbitmq-names"), program=programs.epmd),
            rabbitmq(
                folder, port("rabbitmq"), port("rabbitmq-dist"), port("rabbitmq-names"),
                user=secret["rabbitmq_user"], password=secret["rabbitmq_password"], server=programs.rabbitmq_server,
            ),
        ]  # fmt: skip
    return servers + _vectors(installation)


def _vectors(installation: Installation) -> list[Component]:
    if "vectors" in installation.external:
        return []
    return [milvus_lite(installation.folder, installation.port("milvus"))]


def _service(installation: Installation, name: str, needs: tuple[str, ...], instance: int = 1) -> Component:
    port = installation.port(name, instance)
    own = {"HEADRACE_PORT": str(port)}
    if instance > 1:
        # A spool has one writer.
        own["HEADRACE_SPOOL_DIR"] = str(installation.folder / f"spool-{instance}")
    if instance > 1 and name == "memory":
        own["HEADRACE_MEMORY_GRPC"] = f"127.0.0.1:{installation.port('memory-grpc', instance)}"
    return Component(
        name=name if instance == 1 else f"{name}-{instance}",
        argv=(sys.executable, "-m", f"services.{name}"),
        env={**environment(installation, name), **own},
        cwd=dagster_instance.REPOSITORY,
        address=f"http://127.0.0.1:{port}",
        ready=lambda: is_ready(port),
        needs=needs,
        stop_grace=15,
    )


def is_ready(port: int) -> bool:
    """True once the service on this port says that it can work."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _ensure(installation: Installation, what: str) -> None:
    """In a process of its own: drivers and migrations would stay in the launcher's memory."""
    extra = {}
    if what == DATABASE and (admin := _admin_url(installation)):
        extra["HEADRACE_DATABASE_ADMIN_URL"] = admin
    _run("deploy.ensure", what, env={**environment(installation, what), **extra})


def _admin_url(installation: Installation) -> str | None:
    """A superuser's address of our own server; of one given by URL only what the user gives."""
    if "database" in installation.external:
        return os.environ.get("HEADRACE_DATABASE_ADMIN_URL")
    return f"postgresql://postgres:{installation.secrets['postgres']}@127.0.0.1:{installation.port('postgres')}/postgres"


def _before_code_server(installation: Installation, base: dict[str, str]) -> None:
    """Runs whose worker died with the old code server would stay STARTED for ever: fail them.

    Dagster's own tables are migrated where another version of it wrote them.
    """
    written_by = installation.folder / "dagster" / "version"
    if written_by.exists() and written_by.read_text() != version("dagster"):
        _run("dagster", "instance", "migrate", env=base)
    _run("pipelines.recovery", env=base)
    written_by.write_text(version("dagster"))


def _run(module: str, *arguments: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=env, cwd=dagster_instance.REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        told = [line for line in output.splitlines() if line.strip(" ^~") and "sqlalche.me" not in line]
        raise RuntimeError(f"`python -m {module}` failed: {' | '.join(told[-3:])}")
