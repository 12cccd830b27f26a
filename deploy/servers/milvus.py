"""Milvus 2.3.5 standalone: all its roles in one process, its metadata in an etcd inside, its log on local files.

For tests: the local stack starts the embedded server, which has word search. Traps, each met:
the etcd inside takes port 2379 whatever its settings say, unless a file of its own says otherwise; TERM and INT are
ignored; its roles listen on all interfaces, so a password is asked for; every process leaves a line in
/tmp/milvus/server_id_PID.
"""

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Final

from deploy.component import Component

TOKEN: Final = "root:Milvus"  # noqa: S105 the one that every new Milvus has
_ROLES: Final = ("rootCoord", "queryCoord", "queryNode", "indexCoord", "indexNode", "dataCoord", "dataNode")
PORTS: Final = 5 + len(_ROLES)
"""Ports that it takes."""


def milvus(data: Path, ports: Sequence[int], *, server: Path) -> Component:
    """The server at the first of `PORTS` free ports, with its data in `data`/milvus-server.

    `server` is the program; its libraries lie beside it.
    """
    port, internal, etcd, peers, health, *roles = ports
    folder = data / "milvus-server"
    client, peer = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
    # YAML, of which JSON is a part
    files = {
        "etcd.yaml": {
            "name": "default",
            "data-dir": str(folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "log-level": "warn",
        },
        "milvus.yaml": {
            "etcd": {"endpoints": f"127.0.0.1:{etcd}", "use": {"embed": True}, "data": {"dir": str(folder / "etcd")}},
            "common": {
                "storageType": "local",
                "security": {"authorizationEnabled": True},
                # seconds after SIGKILL for which a new start waits for the roles that died; 30 as shipped
                "session": {"ttl": 5},
            },
            "localStorage": {"path": str(folder / "files")},
            "mq": {"type": "rocksmq"},
            "rocksmq": {"path": str(folder / "log")},
            "log": {"level": "warn", "stdout": True, "file": {"rootPath": ""}},
            "proxy": {"ip": "127.0.0.1", "port": port, "internalPort": internal},
            **{role: {"ip": "127.0.0.1", "port": at} for role, at in zip(_ROLES, roles, strict=True)},
        },
    }  # fmt: skip

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2))
        (folder / "glog.conf").write_text("--logtostderr=true\n--minloglevel=2\n")

    return Component(
        name="milvus-server",
        argv=(str(server), "run", "standalone"),
        env={
            "LC_ALL": "C.UTF-8",
            "HOME": str(folder),
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(health),
            "MILVUSCONF": str(folder),
            "MILVUS_RUN_DIR": str(folder),
            "ETCD_CONFIG_PATH": str(folder / "etcd.yaml"),
            "LD_LIBRARY_PATH": str(server.parent),
        },
        cwd=folder,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: healthy(health),
        stop_signal=SIGKILL,
    )


def healthy(port: int) -> bool:
    """True once every role says that it works."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
