"""Small real processes as components, and a launcher of them in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from deploy.component import Component
from deploy.launch import handle_signals
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.supervisor import Supervisor, Task
from tests.servers import free_port


def mark_of(folder: Path) -> str:
    """A mark of this test alone."""
    return str(folder)


def toy(
    name: str,
    folder: Path,
    *modes: str,
    needs: tuple[str, ...] = (),
    port: int | None = None,
    grace: float = 5,
) -> Component:
    """A component that runs `toy_process.py`."""
    number = port or free_port()
    program = Path(__file__).with_name("toy_process.py")
    return Component(
        name=name,
        argv=(sys.executable, "-S", str(program), str(number), str(folder / "journal"), name, *modes),
        env={"PATH": os.environ["PATH"]},
        address=f"127.0.0.1:{number}",
        ready=lambda: answers(number),
        needs=needs,
        stop_grace=grace,
    )


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def journal(folder: Path) -> list[str]:
    """What the toys wrote, in order."""
    return (folder / "journal").read_text().splitlines()


def supervisor_of(folder: Path, *components: Component, tasks: tuple[Task, ...] = ()) -> Supervisor:
    return Supervisor(
        components,
        tasks,
        run=RunFolder(folder),
        logs_folder=folder / "logs",
        mark=mark_of(folder),
        facts={"mark": mark_of(folder)},
    )


def launcher(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """`launch(folder, port)` below, started as a shell script starts a background job: with INT ignored.

    HUP is not, even where the tests themselves run under nohup, whose wish the launcher respects.
    """
    return subprocess.Popen(
        ["sh", "-c", f"{sys.executable} -m {__name__} {folder} {port} & wait"],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


def launch(folder: Path, port: int) -> None:
    """What `headrace up` does, with two toys."""
    run = RunFolder(folder)
    run.lock()
    supervisor = supervisor_of(
        folder, toy("base", folder, "child", port=port), toy("top", folder, needs=("base",))
    )
    handle_signals(supervisor)
    supervisor.start()
    while not supervisor.poll(0.05):
        pass
    supervisor.stop()
    run.unlock()


if __name__ == "__main__":
    launch(Path(sys.argv[1]), int(sys.argv[2]))
