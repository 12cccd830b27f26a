"""Dagster: whether the code is loaded, what has stopped, which checks are red, which runs failed."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.dagster_web import ask, cause, location_trouble
from deploy.doctor.finding import Finding, Level, few
from deploy.installation import Installation

LATELY_SECONDS = 3600.0
SHOWN = 3
DEFINITIONS = """
{ assetNodes {
    assetKey { path }
    assetChecksOrError { ... on AssetChecks { checks {
        name blocking executionForLatestMaterialization { status } } } } }
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on RepositoryLocation {
    repositories {
        sensors { name defaultStatus sensorState { status ticks(limit: 1) { status error { message causes { message } } } } }
        schedules { name defaultStatus scheduleState { status ticks(limit: 1) { status error { message causes { message } } } } }
    } } } } } } }
"""
FAILED_RUNS = """
query ($since: Float) {
  runsOrError(filter: {statuses: [FAILURE], updatedAfter: $since}, limit: 100) {
    ... on Runs { results { runId jobName tags { key value } } } } }
"""


def location(installation: Installation) -> Iterator[Finding]:
    """An import error leaves Dagster's processes up, with nothing in them to run."""
    trouble = location_trouble(installation.port("dagster-web"), seconds=10)
    if trouble:
        yield Finding(
            "dagster code", Level.FAIL, trouble, "mend the code, then restart; `headrace logs dagster-code`"
        )
    else:
        yield Finding("dagster code", Level.OK, "loaded")


def dagster(installation: Installation) -> Iterator[Finding]:
    """Everything that Dagster knows to be wrong."""
    if not installation.run.locked():
        return
    found = list(location(installation))
    yield from found
    if any(finding.level is not Level.OK for finding in found):
        return
    port = installation.port("dagster-web")
    definitions = ask(port, DEFINITIONS)
    yield from instigators(definitions)
    yield from red_checks(definitions)
    if advisory := advisory_checks(definitions):
        yield from red_advice(advisory, ask(port, newest_executions(advisory)))
    yield from failed_runs(ask(port, FAILED_RUNS, since=time.time() - LATELY_SECONDS))


def instigators(answer: Mapping[str, Any]) -> Iterator[Finding]:
    """Sensors and schedules that should run: stopped by somebody, or failing."""
    stopped, failing = [], []
    for entry in answer["workspaceOrError"]["locationEntries"]:
        for repository in (entry["locationOrLoadError"] or {}).get("repositories", ()):
            for kind in ("sensor", "schedule"):
                for each in repository[f"{kind}s"]:
                    state = each[f"{kind}State"]
                    if each["defaultStatus"] == "RUNNING" and state["status"] != "RUNNING":
                        stopped.append(f"{kind} {each['name']}")
                    elif state["ticks"] and state["ticks"][0]["status"] == "FAILURE":
                        failing.append(f"{kind} {each['name']}: {cause(state['ticks'][0]['error'])}")
    if stopped:
        mend = "start them in the Dagster UI under Automation; without them nothing lands"
        yield Finding("dagster sensors", Level.FAIL, f"stopped: {', '.join(stopped)}", mend)
    if failing:
        yield Finding(
            "dagster sensors", Level.WARN, f"the last tick failed of {'; '.join(failing)}",
            "they ask again by themselves; if it stays, see the tick in the Dagster UI",
        )  # fmt: skip
    if not stopped and not failing:
        yield Finding("dagster sensors", Level.OK, "all run")


def red_checks(answer: Mapping[str, Any]) -> Iterator[Finding]:
    """Blocking checks that failed on what was materialized last: nothing after them runs."""
    red, count = [], 0
    for asset in answer["assetNodes"]:
        for check in asset["assetChecksOrError"].get("checks", ()):
            count += check["blocking"]
            execution = check["executionForLatestMaterialization"]
            if check["blocking"] and execution and execution["status"] in {"FAILED", "EXECUTION_FAILED"}:
                red.append(f"{'/'.join(asset['assetKey']['path'])}: {check['name']}")
    if red:
        mend = "open the check in the Dagster UI; it names what does not hold, and nothing after it has run"
        yield Finding("dagster checks", Level.FAIL, f"red: {', '.join(red)}", mend)
    else:
        yield Finding("dagster checks", Level.OK, f"none of {count} blocking checks is red")


def advisory_checks(answer: Mapping[str, Any]) -> list[tuple[Sequence[str], str]]:
    """Asset key and name of each check that stops nothing where it is red."""
    return [
        (asset["assetKey"]["path"], check["name"])
        for asset in answer["assetNodes"]
        for check in asset["assetChecksOrError"].get("checks", ())
        if not check["blocking"]
    ]


def newest_executions(checks: Sequence[tuple[Sequence[str], str]]) -> str:
    """A query for their newest executions, `c0` for the first check. They run on clocks of their own, so mostly there is
    none of the latest materialization."""
    each = "assetCheckExecutions(assetKey: {path: %s}, checkName: %s, limit: 50) { status evaluation { severity } }"
    asked = (
        f"c{number}: {each % (json.dumps(path), json.dumps(name))}"
        for number, (path, name) in enumerate(checks)
    )
    return f"{{ {' '.join(asked)} }}"


def red_advice(checks: Sequence[tuple[Sequence[str], str]], answer: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks whose newest finished execution is red, by the severity that each gave itself: nobody is stopped by
    them, so somebody must be told."""
    red: dict[Level, list[str]] = {Level.FAIL: [], Level.WARN: []}
    for number, (path, name) in enumerate(checks):
        done = [one for one in answer[f"c{number}"] if one["status"] not in {"IN_PROGRESS", "SKIPPED"}]
        if done and done[0]["status"] != "SUCCEEDED":
            severity = (done[0]["evaluation"] or {}).get("severity")
            red[Level.FAIL if severity == "ERROR" else Level.WARN].append(f"{'/'.join(path)}: {name}")
    mend = "open the check in the Dagster UI; it names what does not hold"
    for level, names in red.items():
        if names:
            yield Finding("dagster advice", level, f"red: {', '.join(names)}", mend)
    if not any(red.values()):
        yield Finding("dagster advice", Level.OK, f"none of {len(checks)} other checks is red")


def failed_runs(answer: Mapping[str, Any]) -> Iterator[Finding]:
    """Runs of the last hour that failed for good; one that is retried is not news."""
    lost = [
        f"{run['jobName']} {run['runId'][:8]}"
        for run in answer["runsOrError"].get("results", ())
        if {"key": "dagster/will_retry", "value": "true"} not in run["tags"]
    ]
    if lost:
        yield Finding(
            "dagster runs", Level.WARN, f"failed in the last hour: {few(lost, SHOWN)}",
            "the sensors ask again by themselves; `headrace logs dagster-code` says why each failed",
        )  # fmt: skip
    else:
        yield Finding("dagster runs", Level.OK, "none failed in the last hour")
