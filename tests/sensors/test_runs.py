"""Whoever asks for a run waits for one that has not ended, and sees to it that it goes on."""

from datetime import timedelta

import dagster as dg
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import RETRY_NUMBER_TAG

from sensors.runs import queue, under_way

TAGS = {"headrace/job": "nothing"}
RETRY = {**TAGS, RETRY_NUMBER_TAG: "1"}
AT_ONCE = timedelta(0)
CODE_SERVER = RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("127.0.0.1", 1), "headrace")


@dg.job
def nothing() -> None:
    pass


def test_a_retry_that_was_made_and_never_queued_is_queued() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert under_way(instance, TAGS) is None
        origin = RemoteJobOrigin(CODE_SERVER, "nothing")
        run = instance.create_run_for_job(nothing, tags=RETRY, remote_job_origin=origin)
        for settled, status in [(None, "NOT_STARTED"), (AT_ONCE, "QUEUED"), (AT_ONCE, "QUEUED")]:
            wait = under_way(instance, TAGS, **({"settled": settled} if settled is not None else {}))
            assert wait is not None
            assert run.run_id in str(wait.skip_message)
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            assert found.status.value == status
        events = [entry.dagster_event for entry in instance.all_logs(run.run_id)]
        assert [event.event_type_value for event in events if event is not None] == ["PIPELINE_ENQUEUED"]


def test_other_runs_are_left_to_the_daemon() -> None:
    status = dg.DagsterRunStatus
    with dg.DagsterInstance.ephemeral() as instance:
        origin = RemoteJobOrigin(CODE_SERVER, "nothing")
        for tags, each in [(TAGS, status.NOT_STARTED), (RETRY, status.STARTING), (RETRY, status.STARTED)]:
            run = instance.create_run_for_job(nothing, tags=tags, status=each, remote_job_origin=origin)
            assert under_way(instance, TAGS, settled=AT_ONCE) is not None
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            assert found.status is each


def test_a_retry_that_a_person_ended_meanwhile_is_not_queued() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        origin = RemoteJobOrigin(CODE_SERVER, "nothing")
        as_it_was = instance.create_run_for_job(nothing, tags=RETRY, remote_job_origin=origin)
        instance.report_run_canceled(as_it_was)
        queue(instance, as_it_was)
        found = instance.get_run_by_id(as_it_was.run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.CANCELED
