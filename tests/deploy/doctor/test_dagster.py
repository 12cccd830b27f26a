"""What Dagster answers, judged. The queries are checked against the schema of the locked Dagster."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
from dagster_graphql.schema import create_schema
from graphql import parse, validate

from deploy import dagster_web
from deploy.doctor import Finding, Level, dagster


def instigator(kind: str, name: str) -> dict[str, Any]:
    state = {"status": "RUNNING", "ticks": [{"status": "SKIPPED", "error": None}]}
    return {"name": name, "defaultStatus": "RUNNING", f"{kind}State": state}


DEFINITIONS: dict[str, Any] = {
    "assetNodes": [
        {
            "assetKey": {"path": ["usage_hourly"]},
            "assetChecksOrError": {
                "checks": [
                    {
                        "name": "conservation",
                        "blocking": True,
                        "executionForLatestMaterialization": {"status": "SUCCEEDED"},
                    }
                ]
            },
        },
        {
            "assetKey": {"path": ["topics", "usage_records"]},
            "assetChecksOrError": {"checks": []},
        },
    ],
    "workspaceOrError": {
        "locationEntries": [
            {
                "locationOrLoadError": {
                    "repositories": [
                        {
                            "sensors": [instigator("sensor", "usage_records_slices")],
                            "schedules": [instigator("schedule", "usage_snapshot_each_minute")],
                        }
                    ]
                }
            }
        ]
    },
}


@pytest.fixture
def answer() -> dict[str, Any]:
    """All in order; a test breaks one thing."""
    return copy.deepcopy(DEFINITIONS)


def repository(answer: dict[str, Any]) -> Any:
    return answer["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"]["repositories"][0]


def one(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize("query", [dagster_web.LOCATION, dagster.DEFINITIONS, dagster.FAILED_RUNS])
def test_the_locked_dagster_understands_the_query(query: str) -> None:
    assert validate(create_schema().graphql_schema, parse(query)) == []


def test_all_in_order(answer: dict[str, Any]) -> None:
    assert one(dagster.instigators(answer)).level is Level.OK
    assert one(dagster.red_checks(answer)).level is Level.OK
    assert one(dagster.failed_runs({"runsOrError": {"results": []}})).level is Level.OK


@pytest.mark.parametrize("kind", ["sensor", "schedule"])
def test_what_somebody_stopped(answer: dict[str, Any], kind: str) -> None:
    each = repository(answer)[f"{kind}s"][0]
    each[f"{kind}State"]["status"] = "STOPPED"
    found = one(dagster.instigators(answer))
    assert found.level is Level.FAIL
    assert f"{kind} {each['name']}" in found.detail
    each["defaultStatus"] = "STOPPED"
    assert one(dagster.instigators(answer)).level is Level.OK


def test_a_sensor_that_fails_names_the_cause(answer: dict[str, Any]) -> None:
    error = {"message": "SensorExecutionError: wrapped", "causes": [{"message": "KeyError: 'x'\n"}]}
    repository(answer)["sensors"][0]["sensorState"]["ticks"] = [{"status": "FAILURE", "error": error}]
    found = one(dagster.instigators(answer))
    assert found.level is Level.WARN
    assert "usage_records_slices: KeyError: 'x'" in found.detail


def test_a_red_check(answer: dict[str, Any]) -> None:
    check = answer["assetNodes"][0]["assetChecksOrError"]["checks"][0]
    check["executionForLatestMaterialization"]["status"] = "FAILED"
    found = one(dagster.red_checks(answer))
    assert found.level is Level.FAIL
    assert "usage_hourly: conservation" in found.detail
    check["blocking"] = False
    assert one(dagster.red_checks(answer)).level is Level.OK


CLOCKED = [(["usage_events"], "objects_intact"), (["topics", "usage_records"], 'a "quoted" one')]


def test_the_locked_dagster_understands_the_query_for_checks_on_clocks() -> None:
    assert validate(create_schema().graphql_schema, parse(dagster.newest_executions(CLOCKED))) == []


def test_checks_that_stop_nothing_are_asked_for(answer: dict[str, Any]) -> None:
    clocked = {"name": "objects_intact", "blocking": False, "executionForLatestMaterialization": None}
    answer["assetNodes"][0]["assetChecksOrError"]["checks"].append(clocked)
    assert dagster.advisory_checks(answer) == [(["usage_hourly"], "objects_intact")]


@pytest.mark.parametrize(
    ("newest", "level"),
    [
        ([], Level.OK),
        ([("SUCCEEDED", "ERROR"), ("FAILED", "ERROR")], Level.OK),
        ([("FAILED", "ERROR"), ("SUCCEEDED", "ERROR")], Level.FAIL),
        ([("IN_PROGRESS", None), ("FAILED", "ERROR")], Level.FAIL),
        ([("FAILED", "WARN")], Level.WARN),
        ([("EXECUTION_FAILED", None)], Level.WARN),
    ],
)
def test_a_check_that_stops_nothing_is_as_bad_as_it_says(
    newest: list[tuple[str, str | None]], level: Level
) -> None:
    """Whatever was materialized since: the newest that has ended counts."""
    said = [
        {"status": status, "evaluation": severity and {"severity": severity}} for status, severity in newest
    ]
    found = one(dagster.red_advice(CLOCKED, {"c0": said, "c1": []}))
    assert found.level is level
    assert ("usage_events: objects_intact" in found.detail) is (level is not Level.OK)


def test_runs_that_failed_for_good() -> None:
    run = {"runId": "0123456789abcdef", "jobName": "usage_slice", "tags": []}
    retried = run | {"tags": [{"key": "dagster/will_retry", "value": "true"}]}
    assert one(dagster.failed_runs({"runsOrError": {"results": [retried]}})).level is Level.OK
    found = one(dagster.failed_runs({"runsOrError": {"results": [run] * 4}}))
    assert found.level is Level.WARN
    assert "usage_slice 01234567" in found.detail
    assert "and 1 more" in found.detail
