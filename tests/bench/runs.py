"""`make bench NAME=runs`: what starting a Dagster run costs, forked as here and in an interpreter of its own."""

import multiprocessing
import subprocess
import sys
from typing import Final

from pipelines.code_server import PRELOADED
from tests.bench import empty, report

ROUNDS: Final = 5


def forked() -> float:
    """CPU-seconds of a run that does nothing, as the platform starts runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return min(pool.apply(empty.run) for _ in range(ROUNDS))


def of_its_own() -> float:
    """CPU-seconds of the same in a fresh process, which is how Dagster starts runs."""
    code = f"import {PRELOADED}; from tests.bench.empty import run; print(run())"
    return min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(ROUNDS)
    )


def main() -> None:
    fork, own = forked(), of_its_own()
    report.write(
        "runs",
        {"process_of_its_own_to_fork": own / fork},
        {"fork_cpu_seconds": round(fork, 3), "process_of_its_own_cpu_seconds": round(own, 2)},
    )


if __name__ == "__main__":
    main()
