"""The life of one component: wait for what it needs, prepare, start, watch, start again."""

import os
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from deploy.component import Component
from deploy.supervisor import processes
from deploy.supervisor.bell import Bell
from deploy.supervisor.processes import Identity, end_group, identify
from deploy.supervisor.run_folder import RunFolder

START_SECONDS = 180.0
CHECK_SECONDS = 2.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
SILENT = "runs but does not answer its readiness check"
SETTLED_SECONDS = 5.0
"""A component that was ready this long starts again at once when it dies; back-off is for what keeps dying."""


class State(StrEnum):
    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """It runs but does not answer its check any more."""
    BACKOFF = "backoff"
    """It ended by itself and is started again after a pause; `reason` says why."""
    STOPPING = "stopping"
    STOPPED = "stopped"


_WAS_READY = (State.READY, State.UNREADY)


class Board(Protocol):
    """What a unit knows of the others."""

    def changed(self) -> None: ...
    def wait_for_needs(self, unit: "Unit") -> bool:
        """True once everything it needs is ready, False when it must stop instead."""
        ...

    def wait_for_dependents(self, unit: "Unit") -> None: ...


class StartFailedError(Exception):
    """The message is the visible reason."""


class Unit:
    """One supervised component, in a thread of its own."""

    def __init__(
        self,
        component: Component,
        board: Board,
        run: RunFolder,
        log: Path,
        mark: str,
        stop: Bell,
        hurry: Bell,
    ) -> None:
        self.name = component.name
        self.component = component
        self.thread = threading.Thread(target=self._live, name=component.name, daemon=True)
        self.state = State.WAITING
        self.reason = ""
        self.since = datetime.now(UTC)
        self.identity: Identity | None = None
        self.starts = 0
        self.failures = 0
        """Consecutive starts that did not hold."""
        self.log = log
        self._board, self._run, self._mark = board, run, f"{mark}/{component.name}"
        self._stop, self._hurry = stop, hurry
        self._process: subprocess.Popen[bytes] | None = None

    def _live(self) -> None:
        while not self._stop.has_rung():
            ready_at: float | None = None
            try:
                if not self._board.wait_for_needs(self):
                    break
                self._prepare()
                if self._stop.has_rung():
                    break
                self._spawn()
                self._await_ready()
                ready_at = time.monotonic()
                self._watch()
            except Exception as error:  # whatever a recipe raises becomes the visible reason
                held = ready_at is not None and time.monotonic() - ready_at >= SETTLED_SECONDS
                self.failures = 1 if held else self.failures + 1
                self._to(State.BACKOFF, _reason(error))
            if self._stop.has_rung():
                break
            self._end_process()
            self._stop.wait(self._delay())
        self._board.wait_for_dependents(self)
        self._end_process()
        self._to(State.STOPPED, self.reason if self.failures else "")

    def _delay(self) -> float:
        """0 for the first failure, then 0.5 s, 1 s, 2 s … 30 s."""
        return 0.0 if self.failures <= 1 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (self.failures - 2))

    def _to(self, state: State, reason: str | None = None) -> None:
        if state != self.state:
            self.since = datetime.now(UTC)
        self.state = state
        if reason is not None:
            self.reason = reason
        self._board.changed()

    def _prepare(self) -> None:
        self._to(State.PREPARING)
        _, _, port = self.component.address.rpartition(":")
        number = port.split("/")[0]
        if number.isdigit() and (owner := processes.port_owner(int(number))):
            raise StartFailedError(f"port {number} is taken by {owner}")
        self.component.prepare()

    def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.component.argv,
                env={**self.component.env, processes.MARK: self._mark},
                cwd=self.component.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.identity = identify(self._process.pid)
        if self.identity is not None:
            self._run.started(self.name, self.identity)
        self.starts += 1
        self._to(State.STARTING)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        pause = 0.02
        while not self._stop.has_rung():
            if self.component.ready():
                self._to(State.READY, "" if self.starts == 1 else self.reason)
                return
            if time.monotonic() > deadline:
                why = self.component.trouble() or "see its log"
                raise StartFailedError(f"not ready {START_SECONDS:.0f} s after its start; {why}")
            self._wait_for_exit(pause)
            pause = min(0.25, pause * 1.5)

    def _watch(self) -> None:
        while not self._stop.has_rung():
            self._wait_for_exit(CHECK_SECONDS)
            if self._stop.has_rung():
                return
            answers = self.component.ready()
            if answers and self.state is State.UNREADY:
                self._to(State.READY)
            elif not answers and self.state is State.READY:
                self._wait_for_exit(0.05)  # dead rather than silent
                self._to(State.UNREADY, self.component.trouble() or SILENT)

    def _wait_for_exit(self, seconds: float) -> None:
        """Return after `seconds` or when all stops.

        Raises:
            StartFailedError: where the process has ended by itself.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            descriptor = os.pidfd_open(process.pid)  # our child: its pid is ours until we reap it
            try:
                self._stop.wait(seconds, also=descriptor)
            finally:
                os.close(descriptor)
        if (code := process.poll()) is not None and not self._stop.has_rung():
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise StartFailedError(
                f"{how} {'when ready' if self.state in _WAS_READY else 'before it was ready'}"
            )

    def _end_process(self) -> None:
        """End the whole group and reap the leader."""
        process, identity = self._process, self.identity
        if process is None or identity is None:
            return
        if self._stop.has_rung():
            self._to(State.STOPPING)
        end_group(
            identity,
            self._mark,
            number=self.component.stop_signal,
            grace=self.component.stop_grace,
            hurry=self._hurry,
        )
        process.wait()
        self._run.ended(self.name)
        self._process = self.identity = None


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    output = getattr(error, "stderr", None)  # of subprocess.CalledProcessError
    if output:
        text = f"{text}: {output.decode(errors='replace').strip()[-500:]}"
    return text
