"""`$DATA/run`: the lock of an installation, what it started, and what `status` shows."""

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.supervisor.processes import Identity, identify


class AlreadyRunningError(Exception):
    """Another launcher holds this folder."""


def write_atomically(file: Path, text: str, *, mode: int = 0o600, durable: bool = True) -> None:
    """Readers see the old text or the new one; when durable, also after a power loss."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    temporary.replace(file)


class RunFolder:
    """Files of one installation that describe what runs now. All of them may be stale; none is trusted."""

    def __init__(self, data: Path) -> None:
        self.path = data / "run"
        self._lock: int | None = None

    def lock(self) -> None:
        """Take the installation for this process until it ends, however it ends.

        Raises:
            AlreadyRunningError: where another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = self.launcher()
            who = f"pid {holder.pid}" if holder else "another process"
            raise AlreadyRunningError(
                f"{self.path.parent} is already in use by {who}; see `headrace status`, stop it with "
                "`headrace down`, or give another --data and --port-base"
            ) from None
        self._lock = descriptor
        own = identify(os.getpid())
        if own is not None:
            self._write("launcher.json", asdict(own))

    def unlock(self) -> None:
        if self._lock is not None:
            with suppress(FileNotFoundError):
                (self.path / "launcher.json").unlink()
            os.close(self._lock)
            self._lock = None

    def locked(self) -> bool:
        """True while some process holds the installation."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def launcher(self) -> Identity | None:
        """Who wrote itself down as the holder; it may be gone."""
        return self._identity("launcher.json")

    def started(self, name: str, identity: Identity) -> None:
        self._write(f"{name}.pid.json", asdict(identity))

    def ended(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.path / f"{name}.pid.json").unlink()

    def recorded(self) -> dict[str, Identity]:
        """Everything that was started and not seen to end, by name."""
        suffix = ".pid.json"
        found = {}
        for file in sorted(self.path.glob(f"*{suffix}")):
            if identity := self._identity(file.name):
                found[file.name.removesuffix(suffix)] = identity
            else:
                file.unlink(missing_ok=True)
        return found

    def write_state(self, state: dict[str, Any]) -> None:
        self._write("state.json", state)

    def state(self) -> dict[str, Any] | None:
        """The last state that a launcher wrote, None where it never did."""
        try:
            state: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return state

    def _identity(self, name: str) -> Identity | None:
        try:
            return Identity(**json.loads((self.path / name).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content), durable=False)
