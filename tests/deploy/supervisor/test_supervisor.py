"""Start by readiness, restart with a visible reason, stop in reverse, leave nobody."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.component import Component
from deploy.supervisor.processes import alive, identify, marked, send, wait_gone
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.supervisor import Supervisor, Task, UpFailedError, end_orphans
from tests.deploy.supervisor.toy import answers, journal, launcher, mark_of, supervisor_of, toy
from tests.servers import free_port

Start = Callable[..., Supervisor]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Start]:
    """Makes a supervisor that is stopped at the end whatever happens."""
    made: list[Supervisor] = []
    run = RunFolder(tmp_path)
    run.lock()

    def start(*components: Component, tasks: tuple[Task, ...] = ()) -> Supervisor:
        supervisor = supervisor_of(tmp_path, *components, tasks=tasks)
        made.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in made:
        supervisor.ask_to_stop()
        supervisor.ask_to_stop()
        supervisor.stop()
    run.unlock()
    assert marked(mark_of(tmp_path)) == []


def until(supervisor: Supervisor, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll as the launcher does until the state is as wanted."""
    while not condition(state := supervisor.state()):
        assert not supervisor.poll(0.02)
    return state


def ready(state: dict[str, Any]) -> bool:
    return bool(state["ready"])


def row(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next(component for component in state["components"] if component["name"] == name)


def test_starts_by_need_and_stops_in_reverse(supervise: Start, tmp_path: Path) -> None:
    done: list[list[str]] = []
    supervisor = supervise(
        toy("top", tmp_path, needs=("task",)),
        toy("base", tmp_path),
        tasks=(Task("task", lambda: done.append(journal(tmp_path)), needs=("base",)),),
    )
    until(supervisor, ready)
    assert supervisor.ready_after is None or supervisor.ready_after > 0
    supervisor.stop()
    assert journal(tmp_path) == ["base start", "top start", "top stop", "base stop"]
    assert done == [["base start"]]
    assert [component["state"] for component in supervisor.state()["components"]] == ["stopped", "stopped"]


def test_a_killed_component_comes_back_and_says_why(supervise: Start, tmp_path: Path) -> None:
    supervisor = supervise(toy("one", tmp_path, "child"))
    before = row(until(supervisor, ready), "one")
    os.kill(before["pid"], signal.SIGKILL)
    after = row(until(supervisor, lambda s: ready(s) and row(s, "one")["pid"] != before["pid"]), "one")
    assert after["restarts"] == 1
    assert after["reason"] == "killed by SIGKILL when ready"
    assert len(marked(mark_of(tmp_path))) == 2  # with one grandchild: that of the killed leader is gone too


def test_what_keeps_failing_backs_off_and_the_first_up_gives_up(supervise: Start, tmp_path: Path) -> None:
    supervisor = supervise(toy("bad", tmp_path, "fail"), toy("waits", tmp_path, needs=("bad",)))
    with pytest.raises(UpFailedError) as caught:
        until(supervisor, ready)
    assert "bad: ended with code 3 before it was ready" in str(caught.value)
    assert "toy fails as asked" in str(caught.value)
    assert row(supervisor.state(), "bad")["state"] == "backoff"
    assert row(supervisor.state(), "waits")["state"] == "waiting"


def test_delays_grow_to_half_a_minute(supervise: Start, tmp_path: Path) -> None:
    unit = supervise(toy("one", tmp_path)).units[0]
    delays = []
    for unit.failures in range(1, 12):
        delays.append(unit._delay())
    assert delays[:5] == [0, 0.5, 1, 2, 4]
    assert delays[-1] == 30


def test_a_failed_task_is_named(supervise: Start, tmp_path: Path) -> None:
    def migrate() -> None:
        raise RuntimeError("column missing")

    supervisor = supervise(toy("one", tmp_path), tasks=(Task("database", migrate),))
    with pytest.raises(UpFailedError, match="database: column missing"):
        until(supervisor, ready)


def test_a_taken_port_is_the_visible_reason(supervise: Start, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        supervisor = supervise(toy("one", tmp_path, port=port))
        state = until(supervisor, lambda s: row(s, "one")["state"] == "backoff")
    assert f"port {port} is taken by" in row(state, "one")["reason"]
    assert f"(pid {os.getpid()})" in row(state, "one")["reason"]
    until(supervisor, ready)


def test_a_silent_component_is_shown_as_unready(supervise: Start, tmp_path: Path) -> None:
    supervisor = supervise(toy("one", tmp_path))
    pid = row(until(supervisor, ready), "one")["pid"]
    os.kill(pid, signal.SIGSTOP)
    # The kernel still accepts for a stopped process until its backlog is full.
    fill = [socket.socket() for _ in range(200)]
    for connection in fill:
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", int(supervisor.units[0].component.address.split(":")[1])))
    state = until(supervisor, lambda s: row(s, "one")["state"] == "unready")
    assert row(state, "one")["reason"]
    os.kill(pid, signal.SIGCONT)
    for connection in fill:
        connection.close()
    until(supervisor, ready)


def test_a_second_stop_does_not_wait_for_grace(supervise: Start, tmp_path: Path) -> None:
    supervisor = supervise(toy("deaf", tmp_path, "deaf", grace=600))
    pid = row(until(supervisor, ready), "deaf")["pid"]
    identity = identify(pid)
    assert identity is not None
    supervisor.ask_to_stop()
    supervisor.ask_to_stop()
    supervisor.stop()
    assert not alive(identity)


def started(folder: Path) -> dict[str, Any]:
    """Wait for the launcher in another process to say that everything is ready."""
    run = RunFolder(folder)
    while not ((state := run.state()) and state["ready_after_seconds"]):
        time.sleep(0.02)
    return state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_in_the_background_stops_on_signals(tmp_path: Path, number: signal.Signals) -> None:
    shell = launcher(tmp_path, free_port())
    started(tmp_path)
    holder = RunFolder(tmp_path).launcher()
    assert holder is not None
    assert send(holder, number)
    assert shell.wait(60) == 0
    assert journal(tmp_path) == ["base start", "top start", "top stop", "base stop"]
    assert marked(mark_of(tmp_path)) == []
    assert not RunFolder(tmp_path).locked()
    assert RunFolder(tmp_path).recorded() == {}


def test_orphans_of_a_killed_launcher_are_ended(tmp_path: Path) -> None:
    port = free_port()
    shell = launcher(tmp_path, port)
    state = started(tmp_path)
    run = RunFolder(tmp_path)
    holder = run.launcher()
    assert holder is not None
    send(holder, signal.SIGKILL)
    shell.wait(60)
    assert len(marked(mark_of(tmp_path))) == 3
    top = identify(row(state, "top")["pid"])
    assert top is not None
    send(top, signal.SIGKILL)
    wait_gone(top, 10)
    run.lock()  # a dead launcher holds nothing
    assert end_orphans([toy("base", tmp_path, port=port)], run, mark_of(tmp_path)) == ["base"]
    run.unlock()
    assert journal(tmp_path) == ["base start", "top start", "base stop"]
    assert marked(mark_of(tmp_path)) == []
    assert run.recorded() == {}


def test_needs_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody"):
        supervisor_of(tmp_path, toy("one", tmp_path, needs=("nobody",)))
    with pytest.raises(ValueError, match="one name"):
        supervisor_of(tmp_path, toy("one", tmp_path), toy("one", tmp_path))


def test_what_keeps_a_component_from_ready_is_its_reason(supervise: Start, tmp_path: Path) -> None:
    loaded = [True]
    component = replace(
        toy("web", tmp_path),
        ready=lambda: loaded[0] and answers(int(address.rpartition(":")[2])),
        trouble=lambda: "the code does not load",
    )
    address = component.address
    supervisor = supervise(component)
    until(supervisor, ready)
    loaded[0] = False
    state = until(supervisor, lambda state: row(state, "web")["state"] == "unready")
    assert row(state, "web")["reason"] == "the code does not load"
