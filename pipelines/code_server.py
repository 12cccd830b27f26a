"""Dagster's code server, whose runs are forks of a process that has imported already: `python -m pipelines.code_server`.

Dagster starts each run in a fresh interpreter, which imports for 1.5 to 4 CPU-seconds and then works for a fraction
of one. Here a fork server (multiprocessing, "forkserver") imports once, with one thread and no connection, when the
first run comes (ADR 0016). It takes the arguments of `dagster api grpc`.
"""

import multiprocessing
from typing import Any, Final

from dagster._cli.api import grpc_command
from dagster._grpc import server

PRELOADED: Final = "pipelines.preloaded"


class ForkingApiServer(server.DagsterApiServer):
    """The same server with another way to start processes. Dagster has no setting for it (1.13)."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._mp_ctx: Any = multiprocessing.get_context("forkserver")


def main() -> None:
    multiprocessing.set_forkserver_preload([PRELOADED])
    server.DagsterApiServer = ForkingApiServer  # type: ignore[misc]
    grpc_command()


if __name__ == "__main__":
    main()
