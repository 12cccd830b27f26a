"""Runs that failed, as lines of the structured log: `headrace logs dagster-code` shows them."""

import logging
import sys

import dagster as dg

from core.log import JsonFormatter, Logger

NAME = "headrace.runs"
WHAT_TO_DO = {
    "StaleError": "nothing; another run was faster, and the sensor goes on from there",
    "LogUnavailableError": "see that the event log runs (`headrace status`); the sensor asks again by itself",
    "TopicChangedError": "run `headrace doctor`; the sensor's last tick says what happened to the topic",
    "LakeBehindError": "restore a lake that holds what is published; nothing lands until then",
    "PurgeRefusedError": "run `headrace purge plan`; it names the object, its offsets and tenants, and what to do",
    "OperationalError": "see that PostgreSQL runs (`headrace status`); the sensor asks again by itself",
    "DagsterAssetCheckFailedError": "open the check in Dagster; it names what does not hold, and nothing after it has run",
}
USUAL = "open the asset in Dagster; 'Red?' in its description says what to do"


def step_failures(context: dg.RunFailureSensorContext) -> list[tuple[str, str]]:
    """(step, class of what was raised) of each step that failed; the message may hold content and is left out."""
    failures = []
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        raised = error.cause if error is not None and error.cause is not None else error
        failures.append((event.step_key or "", (raised.cls_name or "") if raised is not None else ""))
    return failures


def report(job: str, run_id: str, failures: list[tuple[str, str]], *, retried: bool) -> None:
    """One line for each failed step, or one for a run whose process is gone."""
    log = _log()
    for step, error in failures or [("", "")]:
        advice = (
            WHAT_TO_DO.get(error, USUAL) if step else "nothing; its process is gone and it is asked for again"
        )
        log.error("a run failed", asset=step, job=job, run=run_id, error=error, retried=retried, do=advice)


def _log() -> Logger:
    """A logger of its own: the root of this process belongs to Dagster."""
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter("dagster"))
        logger.addHandler(handler)
        logger.propagate = False
    return Logger(NAME)


@dg.run_failure_sensor(
    name="run_failures",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes each failed run to the structured log: asset, run, class of the error and what to do.",
)
def run_failures(context: dg.RunFailureSensorContext) -> None:
    run = context.dagster_run
    retried = run.tags.get("dagster/will_retry", "false") == "true"
    report(run.job_name, run.run_id, step_failures(context), retried=retried)
