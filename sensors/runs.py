"""Whether a run is under way: whoever asks for one looks first, so that no two do the same work."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import dagster as dg
from dagster._core.storage.tags import RETRY_NUMBER_TAG

from core.clock import now

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


SETTLED: Final = timedelta(seconds=30)
"""A daemon queues a retry within a second or two of making it."""


def under_way(
    instance: dg.DagsterInstance, tags: Mapping[str, str], *, settled: timedelta = SETTLED
) -> dg.SkipReason | None:
    """Why to wait: a run with these tags that has not ended; None where there is none.

    A retry that the daemon made and could not queue, because the database went away in between, is queued here after
    `settled`: the daemon never looks at it again, and would end it only after three minutes.
    """
    active = instance.get_run_records(dg.RunsFilter(tags=dict(tags), statuses=UNFINISHED), limit=1)
    if not active:
        return None
    run = active[0].dagster_run
    if is_unqueued_retry(run) and now() - active[0].create_timestamp >= settled:
        queue(instance, run)
    return dg.SkipReason(f"run {run.run_id} is under way")


def is_unqueued_retry(run: dg.DagsterRun) -> bool:
    """Only Dagster's daemon makes retries; it runs what belongs to a code server."""
    made = run.status is dg.DagsterRunStatus.NOT_STARTED and RETRY_NUMBER_TAG in run.tags
    return made and run.remote_job_origin is not None


def queue(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """As Dagster's queue does with a run that is submitted; nothing where that happened meanwhile, or a person ended it."""
    at_last = instance.get_run_by_id(run.run_id)
    if at_last is None or not is_unqueued_retry(at_last):
        return
    instance.report_dagster_event(dg.DagsterEvent.job_enqueue(run), run_id=run.run_id)
