"""Runs whose worker died with the code server: `python -m pipelines.recovery`.

The default run launcher has no health check of its workers, so such a run stays STARTED for ever
(200 s observed with run monitoring polling every 10 s) and its sensor waits that long. The launcher
calls this whenever the code server starts, when no worker can be alive; run retries do the rest.
"""

import sys

import dagster as dg

LOST = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
MESSAGE = "The process of this run ended together with its code server; the run is retried."


def fail_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark every run that claims to be under way as failed; returns their ids."""
    lost = [record.dagster_run for record in instance.get_run_records(dg.RunsFilter(statuses=LOST))]
    for run in lost:
        instance.report_run_failed(run, MESSAGE)
    return [run.run_id for run in lost]


def main() -> int:
    with dg.DagsterInstance.get() as instance:
        for run_id in fail_lost_runs(instance):
            sys.stdout.write(f"run {run_id} was lost and is marked failed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
