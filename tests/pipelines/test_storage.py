"""Dagster's connections last, go with their instance, and are replaced where PostgreSQL closed them."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
from dagster._core.instance import InstanceRef

from deploy.servers.postgres import postgres as postgres_server
from pipelines import storage
from tests.servers import free_port, running, wait_for

_YAML = """\
storage:
  custom:
    module: pipelines.storage
    class: LastingStorage
    config: {postgres_url: "%s"}
telemetry: {enabled: false}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port, password = tmp_path_factory.mktemp("dagster storage"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder / "postgres", port, password), folder / "log"):
        yield f"postgresql+psycopg2://postgres:{password}@127.0.0.1:{port}/postgres"


@pytest.fixture
def ref(url: str, tmp_path: Path) -> InstanceRef:
    (tmp_path / "dagster.yaml").write_text(_YAML % url)
    return InstanceRef.from_dir(str(tmp_path))


@pytest.fixture
def watch(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        wait_for(lambda: not _others(cursor))  # a closed connection's process takes a moment to go
        yield cursor
    connection.close()


_OTHERS = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


def _others(watch: Any) -> set[int]:
    """Processes of PostgreSQL that serve somebody else."""
    watch.execute(f"select pid {_OTHERS}")
    return {pid for (pid,) in watch.fetchall()}


def _ask(instance: dg.DagsterInstance) -> None:
    assert instance.get_runs() == []
    assert instance.all_asset_keys() == []
    assert list(instance.all_instigator_state()) == []


def test_connections_last_as_long_as_their_instance(ref: InstanceRef, watch: Any) -> None:
    with dg.DagsterInstance.from_ref(ref) as instance:
        _ask(instance)
        first = _others(watch)
        assert len(first) == 3
        for _ in range(3):
            _ask(instance)
        assert _others(watch) == first


def test_instances_of_a_code_server_leave_no_connection(ref: InstanceRef, watch: Any) -> None:
    kept = []  # the collector would close what the test is about
    for _ in range(3):
        with dg.DagsterInstance.from_ref(ref) as instance:
            _ask(instance)
        kept.append(instance)
    wait_for(lambda: not _others(watch))


def test_a_connection_that_postgres_closed_is_replaced_before_anybody_sees_it(
    ref: InstanceRef, watch: Any
) -> None:
    with dg.DagsterInstance.from_ref(ref) as instance:
        _ask(instance)
        before = _others(watch)
        watch.execute(f"select pg_terminate_backend(pid, 5000) {_OTHERS}")
        _ask(instance)
        assert _others(watch).isdisjoint(before)


def test_pools_of_our_own_are_not_asked() -> None:
    """They are of the same class, with another driver, and look after their connections themselves."""
    storage._alive(object())
