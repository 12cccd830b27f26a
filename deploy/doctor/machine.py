"""The machine: user namespaces, disk, memory, installed packages."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy import bootstrap
from deploy.doctor.finding import Finding, Level
from deploy.installation import Installation
from deploy.servers.postgres import as_unprivileged

GIGABYTE = 1e9


def kernel(installation: Installation) -> Iterator[Finding]:
    """Python's version and whether the embedded PostgreSQL can run as this user."""
    yield Finding("python", Level.OK, f"{platform.python_version()} on {platform.platform(terse=True)}")
    try:
        as_unprivileged()
    except RuntimeError as error:
        embedded = installation.profile == "embedded" and "database" not in installation.external
        yield Finding(
            "user", Level.FAIL if embedded else Level.WARN, str(error), "run Headrace as an ordinary user"
        )
    else:
        yield Finding("user", Level.OK, "PostgreSQL can run as this user")


def packages(_: Installation) -> Iterator[Finding]:
    """The environment is the one that the lock names."""
    try:
        locked = pins(bootstrap.LOCKS / "run.txt")
    except FileNotFoundError:
        yield Finding("packages", Level.OK, "installed without this project's lock")
        return
    differing = differences(locked)
    if differing:
        yield Finding("packages", Level.WARN, "; ".join(differing[:5]), "run `make setup`")
    else:
        yield Finding("packages", Level.OK, f"{len(locked)} packages as locked")


def pins(lock: Path) -> dict[str, str]:
    """Package to version, as a lock names them."""
    lines = (line.partition(" ")[0].partition("==") for line in lock.read_text().splitlines() if "==" in line)
    return {name.partition("[")[0]: wanted for name, _, wanted in lines if name and not name.startswith("#")}


def differences(locked: dict[str, str]) -> list[str]:
    """What is installed otherwise, in words."""
    found = {name: _version(name) for name in locked}
    return [
        f"{name} {found[name]} instead of {wanted}"
        for name, wanted in locked.items()
        if found[name] != wanted
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def disk(installation: Installation) -> Iterator[Finding]:
    """Room where the data lies. 90 % is also where the alert fires."""
    usage = shutil.disk_usage(installation.folder)
    used = 1 - usage.free / usage.total
    detail = f"{usage.free / GIGABYTE:.1f} GB free of {usage.total / GIGABYTE:.0f} at {installation.folder}"
    if usage.free < GIGABYTE:
        yield Finding("disk", Level.FAIL, detail, "free space now: PostgreSQL stops when the disk is full")
    elif used > 0.9:
        yield Finding("disk", Level.WARN, f"{detail}, {used:.0%} used", "free space, or move the data folder")
    else:
        yield Finding("disk", Level.OK, detail)


def memory(_: Installation) -> Iterator[Finding]:
    """Memory that processes can still get without swapping."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    values = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    free, total = values["MemAvailable"], values["MemTotal"]
    detail = f"{free / GIGABYTE:.1f} GB available of {total / GIGABYTE:.1f}"
    if free < 0.3 * GIGABYTE:
        yield Finding(
            "memory", Level.FAIL, detail, "end other programs; the kernel will kill processes otherwise"
        )
    elif free / total < 0.15:
        yield Finding("memory", Level.WARN, detail, "end other programs, or run fewer components here")
    else:
        yield Finding("memory", Level.OK, detail)
