"""Whether a run is under way: whoever asks for one looks first, so that no two do the same work."""

from collections.abc import Mapping

import dagster as dg

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def under_way(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> dg.SkipReason | None:
    """Why to wait: a run with these tags that has not ended; None where there is none."""
    active = instance.get_run_records(dg.RunsFilter(tags=dict(tags), statuses=UNFINISHED), limit=1)
    return dg.SkipReason(f"run {active[0].dagster_run.run_id} is under way") if active else None
