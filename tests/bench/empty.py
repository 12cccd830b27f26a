"""A Dagster run that does nothing."""

import time

import dagster as dg

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dg.op
def nothing() -> None:
    """Nothing."""


@dg.job(executor_def=dg.in_process_executor)
def empty() -> None:
    nothing()


def run() -> float:
    """Run it; returns the CPU-seconds that this process has used in its life."""
    with dg.DagsterInstance.ephemeral() as instance:
        assert empty.execute_in_process(instance=instance, run_config=_QUIET).success
    return time.process_time()
