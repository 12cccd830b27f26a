"""All components of one installation: start by readiness, watch, stop in reverse order."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.clock import rfc3339
from deploy.component import Component
from deploy.supervisor import logs
from deploy.supervisor.bell import Bell
from deploy.supervisor.processes import alive, end_group, kill_all, marked
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.unit import State, Unit

GIVE_UP_AFTER = 3
"""Starts in a row that may fail before the first `up` reports failure. Later it never gives up."""


class UpFailedError(Exception):
    """The installation did not become ready; the message says which component and why."""


@dataclass(frozen=True)
class Task:
    """Work done once between components: a migration, the topics. Names share one space with components."""

    name: str
    run: Callable[[], None]
    """Raises what the user should read."""
    needs: tuple[str, ...] = ()


def end_orphans(components: Sequence[Component], run: RunFolder, mark: str) -> list[str]:
    """End what an earlier launcher left behind; returns the names.

    Those with a record get their stop signal first, so that servers close their files; what carries
    our mark without a record (started in the instant before the launcher died) is killed.
    """
    known = {component.name: component for component in components}
    recorded = run.recorded()
    found = [name for name, identity in recorded.items() if alive(identity)]

    def end(name: str) -> None:
        component = known.get(name)
        end_group(
            recorded[name],
            f"{mark}/{name}",
            number=component.stop_signal if component else _DEFAULT_STOP,
            grace=component.stop_grace if component else 10,
        )
        run.ended(name)

    threads = [threading.Thread(target=end, args=(name,)) for name in recorded]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kill_all(lambda: marked(f"{mark}/"))
    return found


_DEFAULT_STOP = Component("", (), lambda: True).stop_signal


class Supervisor:
    """Runs components and tasks from `start` to `stop`. One thread a component, none of them busy."""

    def __init__(
        self,
        components: Sequence[Component],
        tasks: Sequence[Task],
        *,
        run: RunFolder,
        logs_folder: Path,
        mark: str,
        facts: dict[str, Any],
    ) -> None:
        names = [component.name for component in components] + [task.name for task in tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"two components have one name: {sorted(names)}")
        needs = {part.name: part.needs for part in components} | {task.name: task.needs for task in tasks}
        for name, needed in needs.items():
            if missing := set(needed) - set(names):
                raise ValueError(f"{name} needs {sorted(missing)}, which is not part of this installation")
        logs_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run, self._facts, self._mark = run, facts, mark
        self._stop, self._hurry = Bell(), Bell()
        self._condition = threading.Condition()
        self._tasks, self._needs = tasks, needs
        self._done: set[str] = set()
        self._task_error: UpFailedError | None = None
        self._began = time.monotonic()
        self._begun_at = datetime.now(UTC)
        self.ready_after: float | None = None
        """Seconds from `start` until everything was ready for the first time."""
        self.units = [
            Unit(component, self, run, logs_folder / f"{component.name}.log", mark, self._stop, self._hurry)
            for component in components
        ]

    # --- what units ask

    def changed(self) -> None:
        with self._condition:
            self._condition.notify_all()
            self._run.write_state(self.state())

    def wait_for_needs(self, unit: Unit) -> bool:
        with self._condition:
            if not self._met(unit.component.needs) and unit.state is not State.BACKOFF:
                unit.state = State.WAITING
            self._condition.wait_for(lambda: self._stop.has_rung() or self._met(unit.component.needs))
            return not self._stop.has_rung()

    def wait_for_dependents(self, unit: Unit) -> None:
        others = [other for other in self.units if unit.name in self._all_needs(other.component.needs)]
        with self._condition:
            self._condition.wait_for(
                lambda: self._hurry.has_rung() or all(other.state is State.STOPPED for other in others)
            )

    def _met(self, needs: tuple[str, ...]) -> bool:
        ready = {unit.name for unit in self.units if unit.state is State.READY} | self._done
        return set(needs) <= ready

    def _all_needs(self, needs: tuple[str, ...]) -> set[str]:
        """With what is needed through a task or another component."""
        found: set[str] = set()
        rest = list(needs)
        while rest:
            if (name := rest.pop()) not in found:
                found.add(name)
                rest.extend(self._needs[name])
        return found

    # --- what the launcher does

    def start(self) -> None:
        self._began = time.monotonic()
        for unit in self.units:
            unit.thread.start()
        for task in self._tasks:
            threading.Thread(target=self._do, args=(task,), name=task.name, daemon=True).start()

    def _do(self, task: Task) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._stop.has_rung() or self._met(task.needs))
        if self._stop.has_rung():
            return
        try:
            task.run()
        except Exception as error:
            self._task_error = UpFailedError(f"{task.name}: {error}")
        else:
            self._done.add(task.name)
        self.changed()

    def poll(self, seconds: float) -> bool:
        """Rotate logs and note readiness; True when it is time to stop. The launcher's main loop calls it.

        Raises:
            UpFailedError: before the first readiness, where a component fails again and again.
        """
        if self._stop.wait(seconds):
            return True
        for unit in self.units:
            logs.rotate(unit.log)
        if self.ready_after is None:
            if self._task_error:
                raise self._task_error
            for unit in self.units:
                if unit.failures >= GIVE_UP_AFTER:
                    end = "".join(f"\n  | {line}" for line in logs.tail(unit.log, 8))
                    raise UpFailedError(f"{unit.name}: {unit.reason}{end}")
            if self.ready:
                self.ready_after = time.monotonic() - self._began
                self.changed()
        return False

    @property
    def ready(self) -> bool:
        """Everything is ready now."""
        return len(self._done) == len(self._tasks) and all(unit.state is State.READY for unit in self.units)

    def ask_to_stop(self) -> None:
        """Begin to stop; asked again, stop without grace. Safe in a signal handler."""
        if self._stop.has_rung():
            self._hurry.ring()
        self._stop.ring()

    def stop(self) -> None:
        """Stop everything, dependents before what they need, and wait until it is gone."""
        self._stop.ring()
        with self._condition:
            self._condition.notify_all()
        for unit in self.units:
            while unit.thread.is_alive():  # woken often, so that a second INT is heard
                unit.thread.join(0.2)
                if self._hurry.has_rung():
                    with self._condition:
                        self._condition.notify_all()
        kill_all(lambda: marked(f"{self._mark}/"))  # what left its group and its parent
        self.changed()

    def state(self) -> dict[str, Any]:
        """What `status` shows, without what only a look at the processes tells."""
        return {
            **self._facts,
            "since": rfc3339(self._begun_at),
            "ready": self.ready,
            "ready_after_seconds": None if self.ready_after is None else round(self.ready_after, 1),
            "tasks": {task.name: task.name in self._done for task in self._tasks},
            "components": [
                {
                    "name": unit.name,
                    "state": str(unit.state),
                    "address": unit.component.address,
                    "pid": unit.identity.pid if unit.identity else None,
                    "start": unit.identity.start if unit.identity else None,
                    "boot": unit.identity.boot if unit.identity else None,
                    "since": rfc3339(unit.since),
                    "restarts": max(0, unit.starts - 1),
                    "reason": unit.reason,
                }
                for unit in self.units
            ],
        }
