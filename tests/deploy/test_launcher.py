"""The whole embedded platform through the command: heals, refuses, survives its launcher, leaves nobody.

The tests run in order on one installation; each leaves it ready for the next.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.cli import demo
from deploy.cli.main import parser
from deploy.client import ApiError, Client
from deploy.components import is_ready
from deploy.drill.platform import fork_servers, forks
from deploy.installation import load
from deploy.supervisor.processes import alive, identify, kill_all, marked, send, wait_gone
from deploy.supervisor.run_folder import RunFolder
from tests.deploy.dagster_runs import launched, leave, parents, process_of, state_of, terminate
from tests.servers import free_base, free_port

HEADRACE = (sys.executable, "-m", "deploy.cli.main")
NAMES = {
    "postgres", "valkey", "milvus", "users", "billing", "lookup", "gateway", "relay", "extractive", "agents", "memory", "ws",
    "web", "dagster-code", "dagster-web", "dagster-daemon",
}  # fmt: skip


def headrace(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*HEADRACE, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def status(data: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(headrace("status", "--data", str(data), "--json").stdout)}


def written(data: Path) -> dict[str, Any]:
    """What the launcher wrote down last: cheaper to ask again and again than the command."""
    state = RunFolder(data).state()
    assert state is not None
    return state


def component(data: Path, name: str) -> dict[str, Any]:
    return next(row for row in written(data)["components"] if row["name"] == name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation that a shell script started in the background."""
    folder = tmp_path_factory.mktemp("launcher") / "data"
    words = " ".join([*HEADRACE, "up", "--data", str(folder), "--port-base", str(free_base())])
    output = folder.parent / "output"
    script = subprocess.Popen(["sh", "-c", f"{words} >{output} 2>&1 & wait"], start_new_session=True)
    try:
        run = RunFolder(folder)
        while not ((state := run.state()) and state["ready_after_seconds"]):
            assert script.poll() is None, output.read_text()
            time.sleep(0.1)
        yield folder
    finally:
        headrace("down", "--data", str(folder))
        if (folder / "installation.json").exists():
            kill_all(lambda: marked(f"{load(folder).mark}/"))
        script.wait()


def test_everything_is_ready_and_prints_how_to_use_it(data: Path) -> None:
    rows = status(data)
    assert set(rows) == NAMES
    for row in rows.values():
        assert set(row) >= {"name", "state", "address", "pid", "rss_mb", "since"}
        assert row["state"] == "ready"
        assert row["rss_mb"] > 0
    output = (data.parent / "output").read_text()
    installation = load(data)
    assert installation.environment["HEADRACE_GATEWAY_URL"] in output
    assert installation.environment["HEADRACE_OWNER_EMAIL"] in output
    assert output.count(installation.environment["HEADRACE_OWNER_PASSWORD"]) == 1
    assert str(data) in output


def test_doctor_finds_nothing(data: Path) -> None:
    answer = headrace("doctor", "--data", str(data), "--json")
    broken = [finding for finding in json.loads(answer.stdout) if finding["level"] == "fail"]
    assert broken == []
    assert answer.returncode == 0


def test_a_second_up_on_the_folder_is_refused(data: Path) -> None:
    answer = headrace("up", "--data", str(data))
    assert answer.returncode == 1
    assert "already in use by pid" in answer.stderr


def test_taken_ports_are_named_with_their_owner(data: Path, tmp_path: Path) -> None:
    installation = load(data)
    answer = headrace("up", "--data", str(tmp_path / "second"), "--port-base", str(installation.port_base))
    assert answer.returncode == 1
    pid = status(data)["postgres"]["pid"]
    assert f"port {installation.port('postgres')} (postgres) is taken by postgres" in answer.stderr
    assert f"(pid {pid})" in answer.stderr
    assert "--port-base" in answer.stderr


def is_accepted(data: Path, key: str) -> bool:
    """Whether the installation answers who has this key."""
    with Client(load(data).environment["HEADRACE_GATEWAY_URL"], key) as caller:
        try:
            caller.get("/api/v1/billing/invariants")
        except ApiError as error:
            if error.status != 401:
                raise
            return False
    return True


def started(data: Path, job: str) -> tuple[str, list[psutil.Process]]:
    """Id of a new run that works now, and the processes of runs, its own among them."""
    run, code = launched(data, job), component(data, "dagster-code")["pid"]
    while state_of(data, run) != "STARTED":
        time.sleep(0.05)
    return run, forks(code)


def test_a_run_is_a_fork_of_a_process_that_has_imported(data: Path) -> None:
    run, code, seen = launched(data, "lake_maintenance"), component(data, "dagster-code")["pid"], set()
    while (state := state_of(data, run)) != "SUCCESS":
        assert state not in ("FAILURE", "CANCELED")
        seen |= {fork.pid for fork in forks(code)}
        time.sleep(0.05)
    assert seen
    (server,) = fork_servers(code)
    # A thread of the server would be missing in its forks, and what it held locked would stay so.
    assert server.num_threads() == 1
    assert any("psycopg2" in one.path for one in server.memory_maps())


def test_a_run_that_is_cancelled_ends(data: Path) -> None:
    run, working = started(data, "quality_suites")
    assert working
    terminate(data, run)
    while (state := state_of(data, run)) != "CANCELED":
        assert state in ("STARTED", "CANCELING")
        time.sleep(0.1)
    _, left = psutil.wait_procs(working, timeout=60)
    assert left == []


def test_a_run_dies_with_the_fork_server_and_is_retried_on_another(data: Path) -> None:
    run, working = started(data, "quality_suites")
    assert working
    code = component(data, "dagster-code")["pid"]
    (server,) = fork_servers(code)
    server.kill()
    # Who goes on would work beside the retry.
    _, left = psutil.wait_procs(working, timeout=10)
    assert left == []
    while (state := state_of(data, run)) != "FAILURE":
        assert state == "STARTED"
        time.sleep(0.1)
    while not forks(code):
        time.sleep(0.05)
    assert fork_servers(code) != [server]


def test_a_new_daemon_goes_on_with_what_the_dead_one_left(data: Path) -> None:
    daemon = component(data, "dagster-daemon")["pid"]
    known = launched(data, "lake_maintenance")
    while not (pid := process_of(data, known)):
        time.sleep(0.02)
    os.kill(pid, signal.SIGSTOP)  # it imports until now
    assert state_of(data, known) == "STARTING"
    os.kill(daemon, signal.SIGSTOP)
    orphan = launched(data, "quality_suites")
    retry = leave(data, orphan)
    assert (state_of(data, orphan), state_of(data, retry)) == ("STARTING", "NOT_STARTED")
    os.kill(daemon, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while state_of(data, orphan) != "FAILURE":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while orphan not in parents(data) or state_of(data, retry) == "NOT_STARTED":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert state_of(data, known) == "STARTING"
    os.kill(pid, signal.SIGCONT)
    while (state := state_of(data, known)) != "SUCCESS":
        assert state in ("STARTING", "STARTED")
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["postgres", "valkey", "gateway"])
def test_a_killed_component_heals(data: Path, name: str) -> None:
    before = component(data, name)
    os.kill(before["pid"], signal.SIGKILL)
    while (after := component(data, name))["restarts"] == before["restarts"] or not written(data)["ready"]:
        time.sleep(0.1)
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    assert after["reason"] == "killed by SIGKILL when ready"


class DemoFailedError(Exception):
    """Ends the time of a demo."""


def test_another_installation_runs_beside_it_for_the_time_of_a_demo(data: Path, tmp_path: Path) -> None:
    """Where nothing runs, `headrace demo` starts a platform and stops it, also when the demo fails."""
    other, before = tmp_path / "other", {row["name"]: row["pid"] for row in written(data)["components"]}
    words = parser().parse_args(["demo", "--data", str(other), "--port-base", str(free_base())])
    keys: dict[Path, str] = {}
    with suppress(DemoFailedError), demo.running(words, other):
        assert {row["state"] for row in status(other).values()} == {"ready"}
        with demo.running(words, other):
            """One that runs is taken as it is."""
        keys |= {folder: headrace("key", "--data", str(folder)).stdout.strip() for folder in (data, other)}
        for folder in keys:
            accepted = {whose: is_accepted(folder, key) for whose, key in keys.items()}
            assert accepted == {whose: whose == folder for whose in keys}
        raise DemoFailedError
    left = marked(f"{load(other).mark}/")
    kill_all(lambda: marked(f"{load(other).mark}/"))
    assert left == []
    assert not RunFolder(other).locked()
    assert is_accepted(data, keys[data])
    assert written(data)["ready"]
    assert {row["name"]: row["pid"] for row in written(data)["components"]} == before


def test_a_demo_whose_platform_does_not_start_says_so(data: Path, tmp_path: Path) -> None:
    taken = str(load(data).port_base)
    answer = headrace("demo", "--data", str(tmp_path / "third"), "--port-base", taken)
    assert answer.returncode == 1
    assert "is taken by" in answer.stderr
    assert "the platform did not start" in answer.stderr


def test_serve_runs_one_service_in_the_foreground(data: Path) -> None:
    port = free_port()
    words = ("serve", "billing", "--data", str(data), "--port", str(port))
    service = subprocess.Popen([*HEADRACE, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_ready(port):
        assert service.poll() is None
        time.sleep(0.1)
    service.terminate()
    assert service.wait() == 0


def test_after_a_killed_launcher_the_next_up_ends_the_orphans_and_loses_nothing(data: Path) -> None:
    answer = headrace("key", "--tenant", "typo", "--data", str(data))
    assert answer.returncode == 1
    assert "there is no tenant 'typo'" in answer.stderr
    key = headrace("key", "--data", str(data)).stdout
    assert key.startswith("sk_live_")
    run = RunFolder(data)
    holder = run.launcher()
    assert holder is not None
    before = [identity for row in status(data).values() if (identity := identify(row["pid"]))]
    assert len(before) == len(NAMES)
    send(holder, signal.SIGKILL)
    wait_gone(holder, 10)
    assert {row["state"] for row in status(data).values()} == {"orphan"}
    assert headrace("doctor", "--data", str(data)).returncode == 1

    (data / "dagster/version").write_text("1.0.0")  # as if an older Dagster had made its tables
    answer = headrace("up", "--detach", "--data", str(data))
    assert answer.returncode == 0, answer.stderr
    assert (data / "dagster/version").read_text() == version("dagster")
    assert "ended what an earlier launcher left behind" in (data / "logs/launcher.log").read_text()
    assert not any(alive(identity) for identity in before)
    assert load(data).environment["HEADRACE_OWNER_PASSWORD"] not in answer.stdout
    assert headrace("key", "--data", str(data)).stdout == key


def test_down_leaves_no_process_and_no_lock(data: Path) -> None:
    mark = load(data).mark
    assert marked(f"{mark}/")
    postgres = identify(status(data)["postgres"]["pid"])
    answer = headrace("down", "--data", str(data))
    assert answer.returncode == 0
    assert marked(f"{mark}/") == []
    assert postgres is not None
    assert not alive(postgres)
    assert not RunFolder(data).locked()
    assert RunFolder(data).recorded() == {}
    assert {row["state"] for row in status(data).values()} == {"stopped"}
