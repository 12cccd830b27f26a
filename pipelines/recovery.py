"""Runs that claim to be under way and that no process works on; run retries do the rest.

The default run launcher has no health check of its workers. What died with the code server stays STARTED for ever
(200 s observed with run monitoring polling every 10 s) and its sensor waits that long: the launcher calls `python -m
pipelines.recovery` whenever the code server starts, when no worker can be alive. A daemon that died after it had
marked a run STARTING and before it had given it to the code server leaves a run that nobody starts, and one that died
between making a retry and queueing it leaves that: the next daemon looks for both first (`pipelines.daemon`).
"""

import sys
import time
from typing import Any, Final, cast

import dagster as dg
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value

from sensors.runs import is_unqueued_retry, queue

LOST = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
MESSAGE = "The process of this run ended together with its code server; the run is retried."
ORPHANED = "The daemon ended before it had given this run to the code server; the run is retried."
SETTLED_SECONDS: Final = 3.0
"""A call that the dead daemon had sent has reached the code server's list of runs by then. One that comes later still
does no harm: Dagster ignores a worker whose run has ended."""


def fail_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark every run that claims to be under way as failed; returns their ids."""
    lost = _runs(instance, LOST)
    for run in lost:
        instance.report_run_failed(run, MESSAGE)
    return [run.run_id for run in lost]


def fail_orphans(instance: dg.DagsterInstance) -> list[str]:
    """Mark every run that is STARTING and unknown to its code server as failed; returns their ids.

    For the daemon before it begins: nobody else gives runs to the code server.

    Raises:
        dagster's errors where the code server does not answer; its next start fails all that it had.
    """
    found = _runs(instance, [dg.DagsterRunStatus.STARTING])
    starting = [run for run in found if run.remote_job_origin is not None]
    if not starting:
        return []
    time.sleep(SETTLED_SECONDS)
    known = {run_id for run in starting for run_id in _current(run)}
    orphans = [run for run in starting if run.run_id not in known and _is_starting(instance, run.run_id)]
    for run in orphans:
        instance.report_run_failed(run, ORPHANED)
    return [run.run_id for run in orphans]


def queue_retries(instance: dg.DagsterInstance) -> list[str]:
    """Queue every retry that was made and not queued; returns their ids.

    For the daemon before it begins: nobody else makes retries. However old: a daemon that lives ends one after three
    minutes, and while none lives no sensor asks for anything, so what it works on has not moved on. If it has (a person
    started a run meanwhile), a slice that has landed is refused and nothing is posted twice, as for each run that
    waited in the queue.
    """
    made = [run for run in _runs(instance, [dg.DagsterRunStatus.NOT_STARTED]) if is_unqueued_retry(run)]
    for run in made:
        queue(instance, run)
    return [run.run_id for run in made]


def _runs(instance: dg.DagsterInstance, statuses: list[dg.DagsterRunStatus]) -> list[dg.DagsterRun]:
    records = instance.get_run_records(dg.RunsFilter(statuses=statuses))
    return [record.dagster_run for record in records]


def _current(run: dg.DagsterRun) -> list[str]:
    """What the code server that this run belongs to has in hand, from the call on that starts it."""
    origin: Any = run.remote_job_origin
    client = origin.repository_origin.code_location_origin.create_client()
    return list(deserialize_value(client.get_current_runs(), GetCurrentRunsResult).current_runs)


def _is_starting(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Still, that is: it may have begun and ended since it was listed."""
    run = cast("dg.DagsterRun", instance.get_run_by_id(run_id))
    return run.status is dg.DagsterRunStatus.STARTING


def main() -> int:
    with dg.DagsterInstance.get() as instance:
        for run_id in fail_lost_runs(instance):
            sys.stdout.write(f"run {run_id} was lost and is marked failed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
