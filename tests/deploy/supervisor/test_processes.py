"""Processes are named by pid and start time, groups with everything they started."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from signal import SIGKILL, SIGTERM

import pytest

from deploy.supervisor.processes import (
    MARK,
    Identity,
    alive,
    end_group,
    identify,
    kill_all,
    marked,
    members,
    memory_mb,
    port_owner,
    send,
)
from tests.servers import free_port

SLEEP = "import time; time.sleep(600)"
HELD_MB = 48
HOLDER = f"""
import os, sys, time
held = bytearray(b"x" * ({HELD_MB} << 20))
pid = os.fork() if sys.argv[1:] == ["shared"] else 0
if pid or not sys.argv[1:]:
    print(pid, flush=True)
time.sleep(600)
"""
OURS = f"test-{os.getpid()}"
FAMILY = f"""
import subprocess, sys, time
inside = subprocess.Popen([sys.executable, "-S", "-c", {SLEEP!r}])
outside = subprocess.Popen([sys.executable, "-S", "-c", {SLEEP!r}], start_new_session=True)
print(inside.pid, outside.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def start(code: str, mark: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A marked process in a session of its own, killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, *arguments],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def identity_of(pid: int) -> Identity:
    found = identify(pid)
    assert found is not None
    return found


@pytest.fixture
def family() -> Iterator[tuple[Identity, Identity, Identity]]:
    """A leader, its child, and a child that opened a session of its own."""
    with start(FAMILY, f"{OURS}/family") as leader:
        assert leader.stdout is not None
        inside, outside = map(int, leader.stdout.readline().split())
        yield identity_of(leader.pid), identity_of(inside), identity_of(outside)
        kill_all(lambda: marked(f"{OURS}/"))


def test_a_process_with_another_start_time_is_not_signalled() -> None:
    with start(SLEEP, f"{OURS}/one") as process:
        real = identity_of(process.pid)
        earlier = replace(real, start=real.start - 1)
        assert alive(real)
        assert not alive(earlier)
        assert not send(earlier, SIGKILL)
        assert members(earlier, "other") == []
        assert process.poll() is None
        assert send(real, SIGKILL)
        assert process.wait() == -SIGKILL
        assert not alive(real)
        assert not send(real, SIGKILL)


def test_a_record_of_an_earlier_boot_names_nobody() -> None:
    own = identity_of(os.getpid())
    assert not alive(replace(own, boot="00000000-0000-0000-0000-000000000000"))


def test_members_are_the_session_and_all_descendants(family: tuple[Identity, Identity, Identity]) -> None:
    assert set(members(family[0], f"{OURS}/family")) == set(family)


def test_end_group_leaves_nobody(family: tuple[Identity, Identity, Identity]) -> None:
    end_group(family[0], "without a mark", number=SIGTERM, grace=5)
    assert not any(alive(identity) for identity in family)


def test_without_its_leader_a_group_is_known_by_the_mark(family: tuple[Identity, Identity, Identity]) -> None:
    send(family[0], SIGKILL)
    os.waitpid(family[0].pid, 0)
    assert set(members(family[0], f"{OURS}/family")) == set(family[1:])
    assert members(family[0], f"{OURS}/other") == []


def test_marked_finds_only_this_mark_and_not_ourselves() -> None:
    with start(SLEEP, f"{OURS}/one") as one, start(SLEEP, f"{OURS}/two") as two:
        assert [identity.pid for identity in marked(f"{OURS}/one")] == [one.pid]
        assert two.poll() is None


def test_a_zombie_is_not_alive() -> None:
    with start("", "zombie") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not alive(identity_of(process.pid))


def test_deaf_leader_is_killed_after_the_grace() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with start(deaf, "deaf") as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_group(identity_of(process.pid), "deaf", number=SIGTERM, grace=0.2)
        assert process.wait() == -SIGKILL


def test_memory_is_counted_per_process() -> None:
    with start(HOLDER, f"{OURS}/holder") as one, start(HOLDER, f"{OURS}/holder") as two:
        found = []
        for process in (one, two):
            assert process.stdout is not None
            process.stdout.readline()
            found.append(identity_of(process.pid))
        # 20 MB above what it holds is for the interpreter, which has about 5.
        assert HELD_MB < memory_mb(found[:1]) < HELD_MB + 20
        assert 2 * HELD_MB < memory_mb(found) < 2 * (HELD_MB + 20)
    assert memory_mb(found) == 0, "who has ended holds nothing"
    assert memory_mb([]) == 0


def test_memory_that_two_share_is_counted_once() -> None:
    with start(HOLDER, f"{OURS}/holder", "shared") as process:
        assert process.stdout is not None
        pair = [identity_of(process.pid), identity_of(int(process.stdout.readline()))]
        try:
            assert HELD_MB < memory_mb(pair) < 1.5 * HELD_MB
        finally:
            kill_all(lambda: marked(f"{OURS}/holder"))


def test_port_owner_names_the_process() -> None:
    port = free_port()
    assert port_owner(port) is None
    with socket.create_server(("127.0.0.1", port)):
        owner = port_owner(port)
    assert owner is not None
    assert f"(pid {os.getpid()})" in owner
    assert port_owner(port) is None
