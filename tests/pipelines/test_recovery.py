"""Runs whose process is gone are failed, and only those."""

import dagster as dg

from pipelines.recovery import MESSAGE, fail_lost_runs


@dg.job
def nothing() -> None:
    pass


def test_only_runs_that_claim_to_be_under_way_are_failed() -> None:
    status = dg.DagsterRunStatus
    with dg.DagsterInstance.ephemeral() as instance:
        others = [each for each in dg.DagsterRunStatus if each.value != "QUEUED"]
        runs = {each: instance.create_run_for_job(nothing, status=each).run_id for each in others}
        lost = fail_lost_runs(instance)
        expected = {status.STARTED, status.STARTING, status.CANCELING}
        assert sorted(lost) == sorted(runs[each] for each in expected)
        for each, run_id in runs.items():
            run = instance.get_run_by_id(run_id)
            assert run is not None
            assert run.status is (status.FAILURE if each in expected else each)
        entries = [
            entry.dagster_event.message
            for entry in instance.all_logs(runs[status.STARTED])
            if entry.dagster_event is not None and entry.dagster_event.is_failure
        ]
        assert entries == [MESSAGE]
        assert fail_lost_runs(instance) == []
