"""What the launcher starts: one process group, how to know that it is ready, how to stop it."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Component:
    """One supervised process.

    `prepare` runs before every start and must be safe to repeat (initdb, storage format, migration).
    `ready` answers within two seconds and never raises for "not yet".
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], bool]
    address: str = ""
    """host:port or URL that people use; empty where there is none."""
    env: Mapping[str, str] = field(default_factory=dict)
    """All of the process's environment, not an addition to ours."""
    cwd: Path | None = None
    trouble: Callable[[], str] = str
    """Why `ready` says no, in one line; asked only then. Empty where nothing is known."""
    prepare: Callable[[], None] = _nothing
    needs: tuple[str, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace: float = 10.0
    """Seconds between the stop signal and SIGKILL to the process group."""
