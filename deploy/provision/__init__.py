"""What the real servers need on this machine: what is there, what is missing, and getting it.

PostgreSQL, Redis and RabbitMQ come from Debian's packages, Kafka's jars from Maven, MinIO is built from its Go
module, Milvus is a wheel. What we fetch ourselves lies in the user's cache folder and is made once.
"""

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from deploy.provision import debian, kafka, milvus, minio, wheels
from deploy.provision.cache import Report
from deploy.provision.process import ProvisioningError

__all__ = [
    "SERVERS",
    "MissingError",
    "Need",
    "Programs",
    "ProvisioningError",
    "missing",
    "programs",
    "provision",
]

SERVERS = ("postgres", "redis", "kafka", "minio", "rabbitmq", "chromium", "milvus")
"""All servers of the profile `stack`, and what only its tests need: a browser and an older vector server.
Those that run elsewhere need nothing here."""


@dataclass(frozen=True)
class Need:
    """One thing that a server needs on this machine."""

    server: str
    name: str
    how: str
    """How a person gets it."""
    find: Callable[[], Path | None]
    package: str = ""
    """The system package that brings it, empty where there is none."""


class MissingError(ProvisioningError):
    """The machine lacks things, each with the way to get it."""

    def __init__(self, needs: Collection[Need]) -> None:
        self.needs = tuple(needs)
        lines = [f"  {need.name} (for {need.server}): {need.how}" for need in self.needs]
        elsewhere = "A server that runs elsewhere needs nothing here: set its URL (.env.example)."
        super().__init__("\n".join(("missing on this machine, and how to get it:", *lines, elsewhere)))


def _on_path(program: str) -> Path | None:
    found = shutil.which(program)
    return Path(found) if found else None


def _find_postgres() -> Path | None:
    return debian.POSTGRES_FOLDER if (debian.POSTGRES_FOLDER / "postgres").exists() else None


_PROVISION = "`headrace provision`"
_POSTGRES = Need(
    "postgres", "PostgreSQL 15", f"`apt-get install postgresql-15`, or {_PROVISION}, as root on Debian 12",
    _find_postgres, "postgresql-15",
)  # fmt: skip
_REDIS = Need(
    "redis", "redis-server", f"`apt-get install redis-server`, or {_PROVISION}, as root on Debian 12",
    lambda: _on_path("redis-server"), "redis-server",
)  # fmt: skip
_RABBITMQ = Need(
    "rabbitmq", "RabbitMQ", f"`apt-get install rabbitmq-server`, or {_PROVISION}, as root on Debian 12",
    debian.find_rabbitmq, "rabbitmq-server",
)  # fmt: skip
_JAVA = Need(
    "kafka",
    "Java 17 or newer",
    "from your system, or `make setup`, then `headrace provision` (a wheel)",
    kafka.find_java,
)
_MAVEN = Need(
    "kafka", "Maven", f"`apt-get install maven`, or {_PROVISION}, as root on Debian 12; or put `mvn` on PATH",
    lambda: _on_path("mvn"), "maven",
)  # fmt: skip
_JARS = Need(
    "kafka", f"Kafka {kafka.version()}", f"{_PROVISION} fetches its jars with Maven", kafka.find_jars
)
_MINIO = Need("minio", "MinIO", f"{_PROVISION} builds it from source with Go", minio.find)
_GO = Need(
    "minio",
    "Go 1.24 or newer",
    "from your system, or `make setup`, then `headrace provision` (a wheel)",
    minio.find_go,
)
_MILVUS = Need("milvus", "Milvus 2.3.5", f"`make setup`, then {_PROVISION} (a wheel)", milvus.find)
_CHROMIUM = Need(
    "chromium", "Chromium", f"`apt-get install chromium`, or {_PROVISION}, as root on Debian 12",
    lambda: _on_path("chromium"), "chromium",
)  # fmt: skip
_FONT = Need(
    "chromium", "a Chinese font", f"`apt-get install fonts-wqy-zenhei`, or {_PROVISION}, as root on Debian 12",
    debian.find_font, "fonts-wqy-zenhei",
)  # fmt: skip


@dataclass(frozen=True)
class Programs:
    """Where the servers lie on this machine. Each raises `MissingError` where it is not there."""

    @property
    def java(self) -> Path:
        """A Java of at least 17."""
        return _found(_JAVA)

    @property
    def kafka_jars(self) -> Path:
        """Folder of jars: the class path of Kafka is all of it."""
        return _found(_JARS)

    @property
    def minio(self) -> Path:
        """MinIO's server."""
        return _found(_MINIO)

    @property
    def redis_server(self) -> Path:
        """Redis' server, Debian's or any other on PATH."""
        return _found(_REDIS)

    @property
    def chromium(self) -> Path:
        """The browser that looks at the pages in tests."""
        return _found(_CHROMIUM)

    @property
    def rabbitmq_server(self) -> Path:
        """RabbitMQ's own start script; `epmd` lies on PATH then."""
        return _found(_RABBITMQ)

    @property
    def epmd(self) -> Path:
        """Erlang's name server, which comes with RabbitMQ."""
        _found(_RABBITMQ)
        return Path(shutil.which("epmd") or "epmd")

    @property
    def milvus(self) -> Path:
        """Milvus' server; its libraries lie beside it."""
        return _found(_MILVUS)

    @property
    def postgres(self) -> Path:
        """Folder with `postgres`, `initdb` and `pg_basebackup`."""
        return _found(_POSTGRES)

    def paths(self, servers: Collection[str] = SERVERS) -> dict[str, Path]:
        """What lies where, for programs that read it."""
        wanted = {
            "java": _JAVA,
            "kafka_jars": _JARS,
            "minio": _MINIO,
            "redis_server": _REDIS,
            "postgres": _POSTGRES,
            "rabbitmq_server": _RABBITMQ,
            "chromium": _CHROMIUM,
            "milvus": _MILVUS,
        }
        return {name: _found(need) for name, need in wanted.items() if need.server in servers}


def _found(need: Need) -> Path:
    path = need.find()
    if path is None:
        raise MissingError([need])
    return path


def missing(servers: Collection[str] = SERVERS) -> list[Need]:
    """What these servers lack on this machine, empty where nothing."""
    wanted = [_POSTGRES, _REDIS, _RABBITMQ, _CHROMIUM, _FONT, _JAVA, _JARS, _MINIO, _MILVUS]
    if _JARS.find() is None:
        wanted.append(_MAVEN)
    if _MINIO.find() is None:
        wanted.append(_GO)
    return [need for need in wanted if need.server in servers and need.find() is None]


def programs(servers: Collection[str] = SERVERS) -> Programs:
    """Where these servers lie; installs nothing.

    Raises:
        MissingError: listing all that is missing.
    """
    if lacking := missing(servers):
        raise MissingError(lacking)
    return Programs()


def provision(report: Report, servers: Collection[str] = SERVERS) -> Programs:
    """Get what is missing, reporting progress line by line; at once where nothing is.

    Safe to repeat, to interrupt and to run twice at the same time.

    Raises:
        MissingError: before anything is fetched, where the machine lacks what we cannot get for it.
        ProvisioningError: where fetching or building fails.
    """
    started = time.monotonic()
    lacking = missing(servers)
    if lacking:
        _refuse(lacking)
        if packages := [need.package for need in lacking if need.package]:
            debian.install(packages, report)
        if "kafka" in servers:
            java = kafka.find_java() or wheels.install(wheels.JRE, report)
            kafka.get_jars(java, report)
        if _MINIO in lacking:
            minio.get(minio.find_go() or wheels.install(wheels.GO, report), report)
        if _MILVUS in lacking:
            milvus.get(report)
    found = programs(servers)
    report(
        f"{_summary(found, servers)} ({'provisioned in' if lacking else 'all there,'} {time.monotonic() - started:.1f} s)"
    )
    return found


def _refuse(lacking: list[Need]) -> None:
    """Raise for what neither a system package nor a wheel of ours can bring."""
    by_package = debian.can_install()
    by_wheel = wheels.installer() is not None
    brings_java = by_package and _MAVEN in lacking
    hopeless = [need for need in lacking if need.package and not by_package]
    if not by_wheel:
        hopeless += [
            need for need in lacking if need in (_GO, _MILVUS) or (need == _JAVA and not brings_java)
        ]
    if hopeless:
        raise MissingError(hopeless)


def _summary(found: Programs, servers: Collection[str]) -> str:
    """One line: what lies where."""
    parts: dict[str, Callable[[], str]] = {
        "kafka": lambda: f"Kafka {kafka.version()}: {found.kafka_jars} (Java: {found.java})",
        "minio": lambda: f"MinIO: {found.minio.parent}",
        "redis": lambda: f"Redis: {found.redis_server}",
        "rabbitmq": lambda: f"RabbitMQ: {found.rabbitmq_server.parent}",
        "postgres": lambda: f"PostgreSQL 15: {found.postgres}",
        "chromium": lambda: f"Chromium: {found.chromium}",
        "milvus": lambda: f"Milvus: {found.milvus.parent}",
    }
    return ", ".join(part() for server, part in parts.items() if server in servers)
