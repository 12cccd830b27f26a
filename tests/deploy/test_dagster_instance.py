"""Readiness of Dagster's processes: a web server without our code is not ready, and says why."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import dagster_instance
from deploy.component import Component
from deploy.dagster_web import DagsterWebError, cause, first_line, location_trouble
from deploy.doctor import Level
from deploy.doctor.dagster import location
from deploy.installation import Installation, prepare
from deploy.ports import USUAL
from tests.servers import free_port, running, wait_for


@pytest.fixture(scope="module")
def web_of_broken_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Component]:
    """A web server on a code server whose module cannot be imported."""
    folder, code, web = tmp_path_factory.mktemp("broken"), free_port(), free_port()
    (folder / "broken_module.py").write_text(
        "import dagster\n\nraise RuntimeError('the price list is gone')\n"
    )
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (folder / "workspace.yaml").write_text(
        f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {code}, location_name: headrace}}\n"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "DAGSTER_HOME": str(folder)}
    python = (sys.executable, "-W", "ignore", "-m")
    code_server = Component(
        "code",
        (*python, "pipelines.code_server", "--lazy-load-user-code", "-m", "broken_module", "-d", str(folder),
         "-h", "127.0.0.1", "-p", str(code)),
        ready=lambda: dagster_instance.code_server_answers(code), env=env, cwd=dagster_instance.REPOSITORY, stop_grace=0.5,
    )  # fmt: skip
    web_server = Component(
        "web",
        (*python, "dagster_webserver", "-w", str(folder / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(web)),
        ready=lambda: dagster_instance.code_server_answers(web),
        address=str(web), env=env, cwd=folder, stop_grace=5,
    )  # fmt: skip
    with running(code_server, folder / "code.log"), running(web_server, folder / "web.log"):
        yield web_server


def test_a_web_server_without_our_code_is_not_ready_and_says_why(
    web_of_broken_code: Component, tmp_path: Path
) -> None:
    port = int(web_of_broken_code.address)
    wait_for(lambda: "is gone" in (dagster_instance.web_trouble(port) or ""))
    assert not dagster_instance.web_answers(port)
    assert "\n" not in str(location_trouble(port))
    (found,) = location(installation_at(tmp_path, port))
    assert found.level is Level.FAIL
    assert "the price list is gone" in found.detail
    assert "headrace logs dagster-code" in found.mend


def installation_at(folder: Path, web: int) -> Installation:
    """An installation whose Dagster UI is on this port."""
    return replace(prepare(folder, None, 0, {}), port_base=web - USUAL["dagster-web"])


def test_no_web_server_is_not_ready() -> None:
    port = free_port()
    assert not dagster_instance.web_answers(port)
    assert str(port) in (dagster_instance.web_trouble(port) or "")
    with pytest.raises(DagsterWebError):
        location_trouble(port)


def test_a_message_is_shown_by_its_first_line() -> None:
    assert first_line("\n  RuntimeError: x \n trace") == "RuntimeError: x"
    assert cause({"message": "wrapped", "causes": [{"message": "y"}, {"message": "z\n"}]}) == "z"
    assert first_line(None) == "no reason was given"


def test_heartbeats_of_a_daemon_that_hangs_do_not_count() -> None:
    started = 1_000.0
    assert dagster_instance.oldest_beat(started, started + 10) == started
    assert dagster_instance.oldest_beat(started, started + 1_000) == started + 910


def test_the_instance_asks_nobody_for_an_address(tmp_path: Path) -> None:
    home = dagster_instance.write(prepare(tmp_path, None, 0, {}))
    written = (home / "dagster.yaml").read_text().splitlines()
    assert any(line.startswith("nux: {enabled: false}") for line in written)
    assert "telemetry: {enabled: false}" in written
