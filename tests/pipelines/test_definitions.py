"""What Dagster runs, as a whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.definitions import defs

SNAPSHOT = Path(__file__).with_name("definitions.json")
HEAVY = ("polars", "duckdb", "deltalake", "pyarrow", "great_expectations", "pandas")


def described() -> dict[str, Any]:
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    return {
        "assets": {
            key.to_user_string(): {
                "deps": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
                "group": graph.get(key).group_name,
                "kinds": sorted(graph.get(key).kinds),
                "code_version": graph.get(key).code_version,
                "owners": sorted(graph.get(key).owners),
                "stale_after": _stale_after(graph.get(key).freshness_policy),
            }
            for key in sorted(graph.get_all_asset_keys(), key=lambda key: key.to_user_string())
        },
        "checks": {
            key.to_user_string(): {"blocking": graph.get(key).blocking} for key in graph.asset_check_keys
        },
        "jobs": {name: _job(repository.get_job(name)) for name in repository.job_names},
        "schedules": {item.name: item.cron_schedule for item in repository.schedule_defs},
        "sensors": {item.name: item.minimum_interval_seconds for item in repository.sensor_defs},
    }


def _stale_after(policy: Any) -> str | None:
    return str(policy.fail_window.to_timedelta()) if policy else None


def _job(job: dg.JobDefinition) -> dict[str, Any]:
    return {
        "executor": job.executor_def.name,
        "tags": dict(job.tags),
        "assets": sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys),
        "ops": sorted(node.name for node in job.nodes),
    }


def test_all_jobs_of_the_repository_are_valid() -> None:
    """Loading definitions does not validate them; a name used twice shows only here and in the code server."""
    defs.get_repository_def().load_all_definitions()


def test_definitions_are_what_the_snapshot_says() -> None:
    """A change here is a change of what runs; write the new snapshot on purpose:

    .venv/bin/python -m tests.pipelines.test_definitions
    """
    assert described() == json.loads(SNAPSHOT.read_text())


def test_every_asset_explains_itself() -> None:
    graph = defs.get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        node, name = graph.get(key), key.to_user_string()
        assert node.owners, name
        assert node.kinds, name
        assert node.group_name != "default", name
        assert node.description, name
        if node.is_materializable:
            assert "**Promise.**" in node.description, name
            assert "**Red?**" in node.description, name
            assert node.code_version, name
            assert node.freshness_policy is not None, name


def test_sensors_and_schedules_run_by_themselves() -> None:
    """'I forgot to switch it on' is the worse failure."""
    repository = defs.get_repository_def()
    assert all(item.default_status is dg.DefaultSensorStatus.RUNNING for item in repository.sensor_defs)
    assert all(item.default_status is dg.DefaultScheduleStatus.RUNNING for item in repository.schedule_defs)


def test_a_fresh_interpreter_loads_them_without_the_data_stack() -> None:
    """The code server keeps what it imports: 131 MB against 289 MB measured."""
    code = f"import sys, pipelines.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(described(), indent=1, sort_keys=True) + "\n")
