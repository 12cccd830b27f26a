"""What every run imports, imported once in the process that runs are forked from (`pipelines.code_server`).

Only what starts no thread: Polars, Delta and Arrow do, and a fork has none of its parent's threads.
"""

import ctypes
import gc
import importlib
import os
import signal
import traceback
from typing import Final

PARTS: Final = (
    "dagster._cli.api",
    "dagster._grpc.impl",
    "dagster._grpc.server",
    "pipelines.storage",
    "pipelines.definitions",
)
_PR_SET_PDEATHSIG: Final = 1
_fork_server: int | None = os.getpid()


def _die_with_the_fork_server() -> None:
    """The code server knows a run through the fork server alone: when that is gone it reports the run as failed and
    Dagster starts it anew, so the old one must not work on beside it. (Forks of a run are the run's own affair.)"""
    global _fork_server
    if _fork_server is None:
        return
    parent, _fork_server = _fork_server, None
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


for part in PARTS:
    try:
        importlib.import_module(part)
    except Exception:
        traceback.print_exc()

os.register_at_fork(after_in_child=_die_with_the_fork_server)
# The collector of a fork would write to every object here, and no page would stay shared.
gc.collect()
gc.freeze()
