"""The `headrace` command as tests use it: a folder and ports of its own."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.ports import USUAL
from deploy.supervisor.processes import marked

HEADRACE = (sys.executable, "-m", "deploy.cli.main")


@dataclass(frozen=True, slots=True)
class Command:
    """One installation by its folder."""

    data: Path

    def __call__(self, *words: str, refused: bool = False) -> str:
        """Run it and return what it printed; it must succeed, or fail where `refused`."""
        done = subprocess.run(
            [*HEADRACE, *words, "--data", str(self.data)],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        assert (done.returncode != 0) == refused, f"headrace {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stderr if refused else done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def processes(self) -> list[object]:
        """Processes of this installation that live."""
        mark = json.loads((self.data / "installation.json").read_text())["mark"]
        return list(marked(f"{mark}/"))


def free_base() -> int:
    """A port base under which nothing listens, below the range of outgoing connections."""
    for base in range(11_000, 23_000, 250):
        try:
            for number in USUAL.values():
                with socket.socket() as candidate:
                    candidate.bind(("127.0.0.1", number + base))
        except OSError:
            continue
        return base
    raise RuntimeError("no free block of ports between 11000 and 32000")
