"""The embedded vector server: milvus-lite's engine behind Milvus' protocol, one process for a data folder.

`python -m deploy.servers.milvus_lite FOLDER PORT` runs it. Everybody else is a client by URL: a second
process on the folder is refused. It has no passwords and no TLS, so it listens on loopback only.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from deploy.component import Component

_REPOSITORY = Path(__file__).parents[2]


def milvus_lite(data: Path, port: int) -> Component:
    """The server at `port` with its data in `data`/milvus."""
    folder = data / "milvus"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    return Component(
        name="milvus",
        argv=(sys.executable, "-m", "deploy.servers.milvus_lite", str(folder), str(port)),
        env={
            "PATH": os.environ.get("PATH", ""),
            "LC_ALL": "C.UTF-8",
            "HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
            # searches of one tenant are small: threads of their own only fight over the cores
            "OMP_NUM_THREADS": "1",
            # What was written last is searched row by row, and its words are indexed anew for each search: below the
            # default of 128 MB that is everything. 1,850 passages took 0.60 CPU-seconds a search by words, 0.03 with
            # this; by meaning 0.17, then 0.02.
            "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": "300000",
            # a client that pings too often is no news
            "GRPC_VERBOSITY": "NONE",
        },
        cwd=_REPOSITORY,
        address=f"127.0.0.1:{port}",
        prepare=prepare,
        ready=lambda: listens(port),
    )


def listens(port: int) -> bool:
    """True once the server takes connections: it opens its data first."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def serve(folder: str, port: int) -> None:
    """Run the server until TERM or INT, then close its files.

    Raises:
        SystemExit: 1, with a line that says why, where another process has the folder.
    """
    from milvus_lite.adapter.grpc.server import run_server  # noqa: PLC0415 - the launcher loads this module too
    from milvus_lite.exceptions import DataDirLockedError  # noqa: PLC0415

    # Its log is written through to the disk only where it is closed, which INT asks it for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_server(folder, "127.0.0.1", port)
    except DataDirLockedError:
        sys.stderr.write(
            f"{folder} is open in another process; one server has it, everybody else talks to that: "
            "set HEADRACE_VECTORS_URL to its address\n"
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
