"""The `headrace` command as tests use it: a folder and ports of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
