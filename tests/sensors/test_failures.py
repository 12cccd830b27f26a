"""A failed run is one structured line without content."""

import json

import dagster as dg
import pytest

from core.lake.commit import StaleError
from sensors.failures import USUAL, WHAT_TO_DO, run_failures


@dg.op
def raises_content() -> None:
    raise ValueError("a secret of somebody")


@dg.op
def is_late() -> None:
    raise StaleError("usage_events", {"slice": 1}, {"slice": 2})


@dg.job(executor_def=dg.in_process_executor)
def both() -> None:
    raises_content()
    is_late()


def test_each_failed_step_is_a_line_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = both.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failures",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=result.get_run_failure_event(),
        ).for_run_failure()
        capsys.readouterr()
        run_failures(context)
    output = capsys.readouterr().out
    assert "secret" not in output
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["level"] for line in lines] == ["error", "error"]
    assert {line["data"]["run"] for line in lines} == {result.run_id}
    assert {(line["data"]["asset"], line["data"]["error"], line["data"]["do"]) for line in lines} == {
        ("raises_content", "ValueError", USUAL),
        ("is_late", "StaleError", WHAT_TO_DO["StaleError"]),
    }
