"""Redis from Debian: password, append-only file each second, on loopback."""

import os
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Final

from deploy.component import Component
from deploy.servers.resp import pings

ENVIRONMENT: Final = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_TEMPLATE = Path(__file__).parent / "redis.conf"


def redis(
    data: Path,
    port: int,
    password: str,
    *,
    server: Path,
    name: str = "redis",
    replication: Callable[[], str] = str,
    ready: Callable[[], bool] | None = None,
    trouble: Callable[[], str] = str,
) -> Component:
    """The server at `port` with its data in `data`/`name`; `server` is the program.

    Args:
        replication: lines for the configuration, asked for at every start; one server alone has none.
        ready: where answering with the password is not enough.
    """
    folder = data / name
    file = folder / "redis.conf"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
        template = Template(_TEMPLATE.read_text())
        file.write_text(
            template.substitute(
                port=port, folder=quoted(str(folder)), password=quoted(password), replication=replication()
            )
        )

    return Component(
        name=name,
        argv=(str(server), str(file)),
        env=ENVIRONMENT,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=ready or (lambda: pings(port, password)),
        trouble=trouble,
    )


def quoted(text: str) -> str:
    """`text` for use between double quotes in the configuration."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
