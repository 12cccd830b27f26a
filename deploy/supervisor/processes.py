"""Processes as Linux knows them: identity, groups, memory, who holds a port.

A process is named by its pid *and* its start time: a pid alone may meanwhile be somebody else's.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.supervisor.bell import Bell

PROC = Path("/proc")
MARK = "HEADRACE_SUPERVISED"
"""Environment variable that every supervised process inherits: `<installation>/<component>`."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process of this boot: never mistaken for a later one with the same pid."""

    pid: int
    start: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    boot: str


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    state: str
    parent: int
    session: int
    start: int


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets
    return _Stat(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _all() -> Iterator[_Stat]:
    """Every process that runs (zombies hold nothing: neither port nor file)."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) and stat.state not in "ZX":
            yield stat


def identify(pid: int) -> Identity | None:
    """Identity of a running process, None where there is none."""
    stat = _stat(pid)
    return None if stat is None else Identity(pid, stat.start, boot_id())


def alive(identity: Identity) -> bool:
    """True while exactly this process runs."""
    stat = _stat(identity.pid)
    return (
        stat is not None
        and stat.start == identity.start
        and stat.state not in "ZX"
        and identity.boot == boot_id()
    )


def _mark(pid: int) -> str | None:
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:  # gone, or another user's
        return None
    prefix = f"{MARK}=".encode()
    return next((v[len(prefix) :].decode() for v in environment.split(b"\0") if v.startswith(prefix)), None)


def members(leader: Identity, mark: str) -> list[Identity]:
    """The session that `leader` opened, its descendants, and every other process that carries its mark.

    Of a leader that is gone only what carries the mark: its number may have been given away again.
    PostgreSQL's processes open sessions of their own and overwrite their environment; they are found as
    descendants, and end by themselves when the postmaster does.
    """
    boot = boot_id()
    everything = list(_all())
    found = {stat.pid: stat for stat in everything if _mark(stat.pid) == mark}
    if alive(leader):
        found |= {stat.pid: stat for stat in everything if stat.session == leader.pid}
    grown = True
    while grown:
        children = [stat for stat in everything if stat.parent in found and stat.pid not in found]
        found |= {stat.pid: stat for stat in children}
        grown = bool(children)
    found.pop(os.getpid(), None)
    return [Identity(stat.pid, stat.start, boot) for stat in found.values()]


def marked(prefix: str) -> list[Identity]:
    """Every running process whose mark begins so, except ourselves."""
    boot = boot_id()
    return [
        Identity(stat.pid, stat.start, boot)
        for stat in _all()
        if stat.pid != os.getpid() and (_mark(stat.pid) or "").startswith(prefix)
    ]


def send(identity: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False where it is gone. No race with a reused pid."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(identity: Identity, seconds: float, *, hurry: Bell | None = None) -> None:
    """Wait until the process has ended (a zombie has), time is up, or `hurry` rings."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if alive(identity):
            (hurry or Bell()).wait(seconds, also=descriptor)
    finally:
        os.close(descriptor)


def end_group(
    leader: Identity, mark: str, *, number: signal.Signals, grace: float, hurry: Bell | None = None
) -> None:
    """The stop signal to the leader, `grace` seconds, then SIGKILL to all that is left of its session."""
    before = members(leader, mark)
    if send(leader, number):
        wait_gone(leader, grace, hurry=hurry)
    kill_all(lambda: [*filter(alive, before), *members(leader, mark)])


def kill_all(find: Callable[[], list[Identity]], *, seconds: float = 10) -> None:
    """SIGKILL what `find()` names until it names nothing more (children may still be forking).

    Raises:
        TimeoutError: where a process survives, which only one in uninterruptible sleep can.
    """
    deadline = time.monotonic() + seconds
    while left := find():
        for identity in left:
            send(identity, signal.SIGKILL)
        for identity in left:
            wait_gone(identity, 1)
        if time.monotonic() > deadline:
            pids = ", ".join(str(identity.pid) for identity in left)
            raise TimeoutError(f"processes {pids} do not end on SIGKILL; a disk or mount they wait for hangs")


def memory_mb(identities: list[Identity]) -> float:
    """Memory as PSS in MB: shared pages are divided among those who share them, so that sums are true.

    RSS would count PostgreSQL's shared buffers once a connection.
    """
    total = 0
    for identity in identities:
        with suppress(OSError):
            for line in (PROC / str(identity.pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return round(total / 1024, 1)


def port_owner(number: int) -> str | None:
    """Who listens on this TCP port, as `name (pid N)`; None where it is free."""
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.laddr.port != number:
            continue
        if connection.pid is None:
            return "a process of another user"
        try:
            words = psutil.Process(connection.pid).cmdline()
            command = " ".join([Path(words[0]).name, *words[1:]])[:60].strip() if words else "a process"
        except psutil.Error:
            command = "a process"
        return f"{command} (pid {connection.pid})"
    return None
