"""RabbitMQ from Debian, one node on loopback, and the Erlang name server that it cannot do without.

Debian's wrapper changes to another user and its service script would leave daemons behind, so the
server's own script is run: it becomes the Erlang machine itself, which stops gracefully on TERM.
"""

import os
import secrets
import socket
from pathlib import Path

from deploy.component import Component

VHOST = "headrace"
_NODE = "headrace@localhost"
# Schedulers that wait do not spin; the node neither starts nor asks a name server of its own.
_ERLANG = (
    "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"
)


def names(data: Path, port: int, *, program: Path) -> Component:
    """Erlang's name server (epmd) at `port`; it keeps nothing."""
    folder = data / "rabbitmq"
    return Component(
        name="rabbitmq-names",
        argv=(str(program), "-address", "127.0.0.1", "-port", str(port)),
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "HOME": str(folder)},
        address=f"127.0.0.1:{port}",
        prepare=lambda: folder.mkdir(parents=True, exist_ok=True, mode=0o700),
        ready=lambda: _connects(port),
    )


def rabbitmq(
    data: Path, port: int, distribution_port: int, names_port: int, *, user: str, password: str, server: Path
) -> Component:
    """The broker at `port` with its data in `data`/rabbitmq.

    User, password and virtual host are made with the data at the first start. `server` is
    RabbitMQ's own start script (`/usr/lib/rabbitmq/bin/rabbitmq-server`).
    """
    folder = data / "rabbitmq"
    files = {
        "rabbitmq.conf": "\n".join(
            (
                f"listeners.tcp.1 = 127.0.0.1:{port}",
                f"default_vhost = {VHOST}",
                f"default_user = {user}",
                f"default_pass = {password}",
                "log.console = true",
                "log.console.level = warning",
                "log.file = false",
                "vm_memory_high_watermark.absolute = 512MB",
                "disk_free_limit.absolute = 50MB",
                # The log of the quorum queues is kept in memory up to here; 512 MB as shipped.
                "raft.wal_max_size_bytes = 32000000",
                "",
            )
        ),
        "enabled_plugins": "[].\n",
        "env.conf": "",
    }

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in files.items():
            file = folder / name
            file.touch(mode=0o600)
            file.write_text(text)
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)

    return Component(
        name="rabbitmq",
        argv=(str(server),),
        env={
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
            # Makes the script become the Erlang machine instead of its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        },
        cwd=folder,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: answers(port),
        needs=("rabbitmq-names",),
        stop_grace=20,
    )


def answers(port: int) -> bool:
    """True once the broker greets a client: the first frame of AMQP 0-9-1 is Connection.Start."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            head = connection.recv(11, socket.MSG_WAITALL)
    except OSError:
        return False
    return head[:3] == b"\x01\x00\x00" and head[7:11] == b"\x00\x0a\x00\x0a"


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
