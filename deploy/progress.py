"""What a person sees while an installation starts: a live table on a terminal, lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_COLOURS = {"ready": "green", "backoff": "red", "unready": "red", "waiting": "dim"}


class Progress:
    """Shows successive states of the supervisor. `with Progress() as progress: progress.show(state)`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._seen: dict[str, tuple[str, str]] = {}
        self._began = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def show(self, state: dict[str, Any]) -> None:
        rows = [(c["name"], c["state"], c["reason"], c["address"]) for c in state["components"]]
        rows += [(name, "ready" if done else "waiting", "", "") for name, done in state["tasks"].items()]
        if self._live.is_started:
            self._live.update(self._table(rows))
            return
        for name, now, reason, address in rows:
            if self._seen.get(name) != (now, reason):
                self._seen[name] = (now, reason)
                if now in {"ready", "backoff", "unready"}:
                    seconds = time.monotonic() - self._began
                    sys.stderr.write(
                        f"{seconds:6.1f} s  {name:17} {now:9} {address} {reason}".rstrip() + "\n"
                    )
                    sys.stderr.flush()

    def _table(self, rows: list[tuple[str, str, str, str]]) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, now, reason, address in rows:
            colour = _COLOURS.get(now, "yellow")
            table.add_row(name, Text(now, colour), address, Text(reason, "red"))
        seconds = time.monotonic() - self._began
        return Group(table, Spinner("dots", f"starting, {seconds:.0f} s"))
