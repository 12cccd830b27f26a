"""Dagster's daemon, which first looks after what the one before it left half-way: `python -m pipelines.daemon`.

It takes the arguments of `dagster-daemon`.
"""

import sys

import dagster as dg
from dagster._daemon.cli import main as daemon

from pipelines.recovery import fail_orphans, queue_retries


def main() -> None:
    with dg.DagsterInstance.get() as instance:
        for run_id in fail_orphans(instance):
            sys.stdout.write(f"run {run_id} was never given to the code server and is marked failed\n")
        for run_id in queue_retries(instance):
            sys.stdout.write(f"run {run_id}, a retry, was never queued and is now\n")
    daemon()


if __name__ == "__main__":
    main()
