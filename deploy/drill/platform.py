"""A platform of the drill's own: started, asked and ended through the `headrace` command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.supervisor.run_folder import RunFolder

WORKER = "dagster-worker"
CODE_SERVER = "dagster-code"


def fork_servers(code: int) -> list[psutil.Process]:
    """Of the code server's process the children that runs are forked from: one, none before its first run.

    Raises: psutil.NoSuchProcess.
    """
    return [
        child
        for child in _alive(psutil.Process(code))
        if "multiprocessing.forkserver" in " ".join(child.cmdline())
    ]


def forks(code: int) -> list[psutil.Process]:
    """The processes in which runs of this code server execute now. Raises: psutil.NoSuchProcess."""
    return [run for server in fork_servers(code) for run in _alive(server)]


def _alive(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children() if child.status() != psutil.STATUS_ZOMBIE]


class DrillError(Exception):
    """The drill could not be carried out, or its result is wrong."""


@dataclass(frozen=True, slots=True)
class Platform:
    """One installation in `data`. Leaving the context stops it and leaves its folder."""

    data: Path
    profile: str
    port_base: int
    replicas: tuple[str, ...] = ()
    """`name=number` for services that run more than once."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings that its processes have beside their usual ones."""

    def __enter__(self) -> Self:
        replicas = [word for each in self.replicas for word in ("--replicas", each)]
        self._headrace(
            "up", "--profile", self.profile, "--port-base", str(self.port_base), "--detach", *replicas
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._headrace("down")

    def status(self) -> list[dict[str, Any]]:
        """What the launcher wrote down of its components: as `headrace status`, without its second of work."""
        state = RunFolder(self.data).state()
        if state is None:
            raise DrillError(f"no platform was started in {self.data}")
        return list(state["components"])

    def wait_ready(self, seconds: float = 180) -> None:
        """Raises: DrillError naming what did not come back."""
        deadline = time.monotonic() + seconds
        while True:
            missing = [entry["name"] for entry in self.status() if entry["state"] != "ready"]
            if not missing:
                return
            if time.monotonic() > deadline:
                raise DrillError(
                    f"not ready after {seconds:.0f} s: {', '.join(missing)}; logs in {self.data}/logs"
                )
            time.sleep(1)

    def kill(self, target: str, patience: float = 120) -> int:
        """SIGKILL to the process of a component, or to the worker of a run; returns its pid.

        Raises:
            DrillError: where there was no such process for `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            process = self._worker() if target == WORKER else self._component(target)
            if process is not None:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return process
            if time.monotonic() > deadline:
                raise DrillError(f"no process of {target} for {patience:.0f} s")
            time.sleep(0.2)

    def pid(self, target: str, patience: float = 60) -> int:
        """Raises: DrillError where the component is not ready for `patience` seconds."""
        deadline = time.monotonic() + patience
        while (found := self._component(target)) is None:
            if time.monotonic() > deadline:
                raise DrillError(f"no process of {target} for {patience:.0f} s")
            time.sleep(0.2)
        return found

    def _component(self, name: str) -> int | None:
        return next(
            (
                int(entry["pid"])
                for entry in self.status()
                if entry["name"] == name and entry["state"] == "ready"
            ),
            None,
        )

    def _worker(self) -> int | None:
        """The process in which a run executes: a fork of the code server's fork server."""
        code = self._component(CODE_SERVER)
        if code is None:
            return None
        try:
            return next((run.pid for run in forks(code)), None)
        except psutil.NoSuchProcess:
            return None

    def _headrace(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", *arguments, "--data", str(self.data)],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise DrillError(
                f"headrace {arguments[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}"
            )
        return done.stdout
