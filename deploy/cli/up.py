"""`headrace up`: start an installation and stay, or leave it running with `--detach`."""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.frame import CommandError, Subparsers, command, data_folder, note, port_base
from deploy.installation import Installation, load, resolve
from deploy.ports import MOST_REPLICAS
from deploy.supervisor import logs
from deploy.supervisor.processes import identify
from deploy.supervisor.run_folder import RunFolder

if TYPE_CHECKING:
    from deploy.supervisor.supervisor import Supervisor


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "up",
        "Start the platform and stay with it; Ctrl-C stops everything",
        run,
        examples=(
            "headrace up",
            "headrace up --detach --data /srv/headrace",
            "headrace up --data /tmp/second --port-base 1000     # beside the first",
            "headrace up --profile stack                         # Kafka, RabbitMQ, PostgreSQL + replica, …",
            "headrace up --replicas agents=2 --replicas gateway=2  # the second ones are agents-2, gateway-2",
            "HEADRACE_EVENTLOG_URL=kafka://k1:9092 headrace up   # a server given by URL is used, not started",
        ),
        json_output=False,
        profile=True,
    )
    parser.add_argument("--port-base", type=port_base, metavar="N", help="added to every usual port")
    parser.add_argument(
        "--replicas", action="append", type=_replicas, default=[], metavar="NAME=N",
        help="N instances of a service, each 100 ports above the one before; may be repeated",
    )  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="return when everything is ready")
    parser.add_argument(
        "--demo", action="store_true", help="run `headrace demo` once when everything is ready"
    )
    parser.add_argument("--detached-child", action="store_true", help=argparse.SUPPRESS)


def _replicas(text: str) -> tuple[str, int]:
    """Type of `--replicas`. Raises: ArgumentTypeError, a usage error."""
    from deploy.components import SERVICES

    name, _, count = text.partition("=")
    if name not in SERVICES:
        raise argparse.ArgumentTypeError(f"{name!r} is no service; the services are {', '.join(SERVICES)}")
    if not count.isascii() or not count.isdigit() or not 1 <= int(count) <= MOST_REPLICAS:
        raise argparse.ArgumentTypeError(f"{text!r}: the number must be from 1 to {MOST_REPLICAS}")
    return name, int(count)


def run(arguments: argparse.Namespace) -> int:
    folder = data_folder(arguments)
    note(f"data folder: {folder}")
    return _detached(arguments, folder) if arguments.detach else _attached(arguments, folder)


def _attached(arguments: argparse.Namespace, folder: Path) -> int:
    from deploy.launch import PortsTakenError, UpFailedError, up
    from deploy.progress import Progress
    from deploy.provision import ProvisioningError

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())

        def on_ready(installation: Installation, supervisor: "Supervisor") -> None:
            stack.close()
            if arguments.detached_child:
                return
            if arguments.demo and not _demo_beside(supervisor, folder):
                return
            _summary(installation, supervisor.ready_after or 0)
            note("Ctrl-C stops it.")

        try:
            up(
                folder,
                arguments.profile,
                arguments.port_base,
                replicas=dict(arguments.replicas),
                on_state=progress.show,
                on_ready=on_ready,
                say=note,
            )
        except (PortsTakenError, UpFailedError, ProvisioningError) as error:
            raise CommandError(str(error)) from error
    note("stopped; nothing is left running")
    return 0


def _detached(arguments: argparse.Namespace, folder: Path) -> int:
    from deploy.progress import Progress

    run = RunFolder(folder)
    argv = [sys.executable, "-m", "deploy.cli.main", "up", "--detached-child", "--data", str(folder)]
    if arguments.profile:
        argv += ["--profile", arguments.profile]
    if arguments.port_base is not None:
        argv += ["--port-base", str(arguments.port_base)]
    for name, count in arguments.replicas:
        argv += ["--replicas", f"{name}={count}"]
    log = folder / "logs" / "launcher.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not run.locked():
        log.unlink(missing_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    identity = identify(child.pid)
    with Progress() as progress, _ended_by_ctrl_c(child):
        while True:
            if child.poll() is not None:
                raise CommandError("it did not start:\n" + "\n".join(logs.tail(log, 15)))
            state: dict[str, Any] | None = run.state() if run.launcher() == identity else None
            if state and state["launcher_pid"] == child.pid:
                progress.show(state)
                if state["ready_after_seconds"] is not None:
                    break
            time.sleep(0.1)
    _summary(load(folder), state["ready_after_seconds"])
    if arguments.demo:
        _ended(_demo(folder).wait())
    note(f"running in the background; stop it with `headrace down --data {shlex.quote(str(folder))}`")
    return 0


@contextlib.contextmanager
def _ended_by_ctrl_c(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """While we wait for it, Ctrl-C means the launcher; it has a session of its own."""
    try:
        yield
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def _demo(folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "deploy.cli.main", "demo", "--data", str(folder)])


def _demo_beside(supervisor: "Supervisor", folder: Path) -> bool:
    """Run the demo while the launcher attends to its processes; False where it is time to stop."""
    with _demo(folder) as demo:
        while demo.poll() is None:
            if supervisor.poll(0.2):
                demo.terminate()
                return False
    _ended(demo.returncode)
    return True


def _ended(code: int) -> None:
    if code:
        note("the demo did not end well, see above; the platform runs on")


def _summary(installation: Installation, seconds: float) -> None:
    """Addresses, credentials, one request to try."""
    gateway = installation.environment["HEADRACE_GATEWAY_URL"]
    dagster = f"http://127.0.0.1:{installation.port('dagster-web')}"
    email = installation.environment["HEADRACE_OWNER_EMAIL"]
    password = installation.environment["HEADRACE_OWNER_PASSWORD"]
    folder = (
        "" if installation.folder == resolve(None) else f" --data {shlex.quote(str(installation.folder))}"
    )
    headrace = os.path.relpath(Path(sys.executable).with_name("headrace"))
    known = f"printed at the first start, kept in {installation.folder}/secrets.json"
    print(
        f"\nready after {seconds:.1f} s\n"
        f"  gateway     {gateway}\n"
        f"  API docs    {gateway}/docs\n"
        f"  pages       http://127.0.0.1:{installation.port('web')}\n"
        f"  Dagster     {dagster}\n"
        f"  owner       {email}\n"
        f"  password    {password if installation.fresh else known}\n"
        f"  data        {installation.folder}\n"
        f'  try         curl -H "Authorization: Bearer $({headrace} key{folder})" {gateway}/api/v1/usage\n',
        flush=True,
    )
    if installation.fresh:
        installation.mark_shown()
