"""Runs one component for the length of a test session, without the supervisor."""

import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from core.settings import DatabaseSettings
from deploy import migrate
from deploy.component import Component
from deploy.ports import USUAL

_BASES = range(11_000, 23_000, 250)
_BLOCKS = {number + base for base in _BASES for number in USUAL.values()}
"""Ports of installations that tests start, which bind them only later."""
_PROMISED: set[int] = set()
"""Ports that were asked for and may not be bound yet."""


def listener(port: int) -> psutil.Process:
    """The process that takes connections there."""
    (pid,) = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port
    }
    assert pid is not None
    return psutil.Process(pid)


def free_port() -> int:
    """A free port below the ephemeral range, so that no outgoing connection takes it meanwhile; each lane of the tests
    has ports of its own, since a server binds what it was given only seconds later."""
    for _ in range(200):
        port = 10_240 + 2 * (int.from_bytes(os.urandom(2)) % 10_000) + _lane()
        if port in _PROMISED or port in _BLOCKS:
            continue
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            _PROMISED.add(port)
            return port
    raise RuntimeError("no free port found between 10240 and 30240")


def _lane() -> int:
    """Which of the two processes of `make test` this is."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2


def free_ports(number: int) -> list[int]:
    """So many different ones; see `free_port`."""
    return [free_port() for _ in range(number)]


def free_base() -> int:
    """A port base under which nothing listens, below the range of outgoing connections; each lane of the tests has
    bases of its own."""
    bases = _BASES[_lane() :: 2]
    for base in random.sample(bases, len(bases)):
        try:
            for number in USUAL.values():
                with socket.socket() as candidate:
                    candidate.bind(("127.0.0.1", number + base))
        except OSError:
            continue
        return base
    raise RuntimeError("no free block of ports between 11000 and 32000")


def start(component: Component, log: Path, *, seconds: float = 300) -> subprocess.Popen[bytes]:
    """Prepare and start in a process group of its own; return when ready.

    Raises:
        RuntimeError: with the end of its log when it dies or is not ready in time.
    """
    component.prepare()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            component.argv, env=dict(component.env), cwd=component.cwd, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + seconds
    while not component.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            kill(process)
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{component.name} did not become ready; the end of its log:\n{tail}")
        time.sleep(0.05)
    return process


def wait_for(true: Callable[[], bool], *, seconds: float = 30) -> None:
    """Return when `true()` holds.

    Raises:
        TimeoutError: where it does not come to hold.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen within {seconds:.0f} s")
        time.sleep(0.05)


def stop(component: Component, process: subprocess.Popen[bytes]) -> None:
    """The component's own stop signal, then SIGKILL to its group."""
    if process.poll() is None:
        process.send_signal(component.stop_signal)
        try:
            process.wait(component.stop_grace)
        except subprocess.TimeoutExpired:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process group we started and to children in groups of their own, and reap it.

    Sessions of PostgreSQL outlive their postmaster for a moment, and no other starts on its folder meanwhile.
    """
    children = list[psutil.Process]()
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=30)


@contextmanager
def running(component: Component, log: Path) -> Iterator[Component]:
    process = start(component, log)
    try:
        yield component
    finally:
        stop(component, process)


def database_settings(port: int, superuser_password: str, *, migrated: bool = True) -> DatabaseSettings:
    """Make roles and, where `migrated`, the schema on the server at `port`; return the settings that reach it."""
    passwords = {role: secrets.token_hex(16) for role in migrate.ROLES}
    migrate.ensure_roles(
        f"postgresql://postgres:{superuser_password}@127.0.0.1:{port}/postgres", "headrace", passwords
    )
    settings = DatabaseSettings(
        database_url=f"postgresql://127.0.0.1:{port}/headrace",
        database_owner_password=passwords["hr_owner"],
        database_app_password=passwords["hr_app"],
        database_system_password=passwords["hr_system"],
    )
    if migrated:
        migrate.upgrade(settings)
    return settings
