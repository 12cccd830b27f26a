"""Runs of a running installation, through Dagster's web server as people start and watch them."""

import re
import subprocess
import sys
from pathlib import Path

from deploy.components import environment
from deploy.dagster_web import ask
from deploy.installation import load

LAUNCH = """
mutation ($job: String!) { launchRun(executionParams: {runConfigData: {}, selector: {
    repositoryLocationName: "headrace", repositoryName: "__repository__", jobName: $job}}) {
        __typename ... on LaunchRunSuccess { run { runId } } } }
"""
TERMINATE = "mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"
EVENTS = """
query ($run: ID!) { runOrError(runId: $run) { ... on Run {
    eventConnection { events { ... on EngineEvent { message } } } } } }
"""
RETRIES = "{ runsOrError { ... on Runs { results { parentRunId } } } }"
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
LEAVE = """
import sys, dagster as dg
from dagster._core.utils import make_new_run_id
with dg.DagsterInstance.get() as instance:
    run = instance.get_run_by_id(sys.argv[1])
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=run.job_name)
    instance.report_dagster_event(event, run_id=run.run_id)
    retry = run.with_status(dg.DagsterRunStatus.NOT_STARTED).with_tags({**run.tags, "dagster/retry_number": "1"})
    retry = retry._replace(run_id=make_new_run_id())
    instance.add_run(retry)
    print(retry.run_id, end="")
"""


def launched(data: Path, job: str) -> str:
    """Id of a new run of the job."""
    return str(ask(load(data).port("dagster-web"), LAUNCH, job=job)["launchRun"]["run"]["runId"])


def state_of(data: Path, run: str) -> str:
    return str(ask(load(data).port("dagster-web"), STATUS, run=run)["runOrError"]["status"])


def leave(data: Path, run: str) -> str:
    """What a daemon leaves that is killed: this run before it called the code server, and a retry (the id of which this
    returns) before it queued it."""
    env = environment(load(data), "dagster-daemon")
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, run], env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


def process_of(data: Path, run: str) -> int | None:
    """Where the run executes, as it says itself; None before."""
    events = ask(load(data).port("dagster-web"), EVENTS, run=run)["runOrError"]["eventConnection"]["events"]
    found = (re.search(r"Started process for run \(pid: (\d+)\)", each.get("message", "")) for each in events)
    return next((int(pid[1]) for pid in found if pid), None)


def parents(data: Path) -> set[str]:
    """Ids of the runs that were retried."""
    rows = ask(load(data).port("dagster-web"), RETRIES)["runsOrError"]["results"]
    return {row["parentRunId"] for row in rows}


def terminate(data: Path, run: str) -> None:
    ask(load(data).port("dagster-web"), TERMINATE, run=run)
