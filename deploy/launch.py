"""`headrace up` itself: take the folder, end orphans, start everything, stay, stop everything."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deploy import dagster_instance
from deploy.component import Component
from deploy.components import components, own_servers, tasks
from deploy.installation import Installation, Profile, prepare
from deploy.provision import provision
from deploy.supervisor.processes import port_owner
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.supervisor import Supervisor, UpFailedError, end_orphans

POLL_SECONDS = 2.0


class PortsTakenError(Exception):
    """Something else listens where a component has to."""


def up(
    folder: Path,
    profile: Profile | None,
    port_base: int | None,
    *,
    replicas: Mapping[str, int] = MappingProxyType({}),
    on_state: Callable[[dict[str, Any]], None],
    on_ready: Callable[[Installation, Supervisor], None],
    say: Callable[[str], None],
) -> None:
    """Run an installation until INT or TERM, then stop it. Returns when nothing of it is left.

    Args:
        replicas: service to number of its instances, one where not named.
        on_state: called several times a second until everything is ready.
        on_ready: called once, in this thread; what takes longer polls the supervisor meanwhile.
        say: one line for the user.

    Raises:
        AlreadyRunningError, InstallationError, PortsTakenError, UpFailedError: each says what to do.
    """
    run = RunFolder(folder)
    run.lock()
    try:
        installation = prepare(folder, profile, port_base, replicas=replicas)
        if installation.profile == "stack":
            provision(say, own_servers(installation))
        parts = components(installation)
        if orphans := end_orphans(parts, run, installation.mark):
            say(f"ended what an earlier launcher left behind: {', '.join(orphans)}")
        refuse_taken_ports(parts)
        dagster_instance.write(installation)
        supervisor = Supervisor(
            parts,
            tasks(installation, parts),
            run=run,
            logs_folder=installation.logs,
            mark=installation.mark,
            facts={
                "data": str(folder),
                "profile": installation.profile,
                "port_base": installation.port_base,
                "mark": installation.mark,
                "launcher_pid": os.getpid(),
            },
        )
        handle_signals(supervisor)
        _attend(supervisor, installation, on_state, on_ready, say)
    finally:
        run.unlock()


def _attend(
    supervisor: Supervisor,
    installation: Installation,
    on_state: Callable[[dict[str, Any]], None],
    on_ready: Callable[[Installation, Supervisor], None],
    say: Callable[[str], None],
) -> None:
    try:
        supervisor.start()
        while supervisor.ready_after is None:
            if supervisor.poll(0.1):
                return
            on_state(supervisor.state())
        on_ready(installation, supervisor)
        while not supervisor.poll(POLL_SECONDS):
            pass
    finally:
        say("stopping; once more ends it without grace")
        supervisor.stop()


def handle_signals(supervisor: Supervisor) -> None:
    """INT, TERM and a closed terminal stop everything, a second one without grace.

    Set explicitly: a shell starts background jobs with INT ignored, and what we start would inherit
    that; handled signals are reset to their defaults in it. `nohup` keeps its meaning.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, lambda *_: supervisor.ask_to_stop())


def refuse_taken_ports(parts: list[Component]) -> None:
    """Raises: PortsTakenError naming each port and who holds it."""
    taken = []
    for part in parts:
        number = part.address.rpartition(":")[2]
        if number.isdigit() and (owner := port_owner(int(number))):
            taken.append(f"port {number} ({part.name}) is taken by {owner}")
    if taken:
        raise PortsTakenError(
            "; ".join(taken) + "; end that process, or give --port-base N to shift all ports"
        )


__all__ = ["PortsTakenError", "UpFailedError", "up"]
