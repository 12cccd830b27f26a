"""Servers and tools from Debian's packages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.provision.cache import Report, locked
from deploy.provision.process import ProvisioningError, run

POSTGRES_FOLDER = Path("/usr/lib/postgresql/15/bin")
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_FONTS = tuple(
    Path("/usr/share/fonts") / name for name in ("truetype/wqy", "opentype/noto-cjk", "truetype/noto-cjk")
)
_NO_START = Path("/usr/sbin/policy-rc.d")
_NO_CLUSTER = Path("/etc/postgresql-common/createcluster.d/headrace.conf")
_MARK = "# written by headrace provision; it may be removed"


def find_rabbitmq() -> Path | None:
    """The server's own script, not the wrapper on PATH that changes to another user."""
    return _RABBITMQ if _RABBITMQ.exists() and shutil.which("epmd") else None


def find_font() -> Path | None:
    """Without one a browser draws boxes for Chinese."""
    return next((folder for folder in _FONTS if folder.exists()), None)


def can_install() -> bool:
    """True where this process may install packages."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: list[str], report: Report) -> None:
    """Install packages without starting their services and without a default database cluster.

    Raises:
        ProvisioningError: with the end of apt's output.
    """
    with locked("apt", report), _quiet_services():
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        names = ", ".join(packages)
        report(f"system packages: installing {names}")
        command = [
            "apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300",
            *packages,
        ]  # fmt: skip
        try:
            run(command, label="system packages", report=report, env=environment)
        except ProvisioningError:
            report("system packages: not in the package lists as they are here, updating them")
            run(["apt-get", "update", "-q"], label="package lists", report=report, env=environment)
            run(command, label="system packages", report=report, env=environment)
        _do_not_start_at_boot(packages)


@contextmanager
def _quiet_services() -> Iterator[None]:
    """Packages start their servers on the usual ports when installed; ours run on ports of our own."""
    if _NO_CLUSTER.parent.parent.parent.exists() and not _NO_CLUSTER.exists():
        _NO_CLUSTER.parent.mkdir(parents=True, exist_ok=True)
        _NO_CLUSTER.write_text(f"{_MARK}\ncreate_main_cluster = false\n")
    ours = not _NO_START.exists() or _MARK in _NO_START.read_text()
    if ours:
        _NO_START.write_text(f"#!/bin/sh\n{_MARK}\nexit 101\n")
        _NO_START.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _NO_START.unlink(missing_ok=True)


def _do_not_start_at_boot(packages: list[str]) -> None:
    if shutil.which("systemctl"):
        for service in {"redis-server", "rabbitmq-server"} & {*packages}:
            subprocess.run(["systemctl", "disable", service], capture_output=True, check=False)
