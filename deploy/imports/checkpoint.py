"""How far an import came, and what its report says of that.

Counts stand in a file that is replaced. Verdicts of refused events stand in one beside it that only grows, so
that a long list is not written again with each batch; it holds up to the length that the counts name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.supervisor.run_folder import write_atomically


@dataclass(frozen=True, slots=True)
class Reached:
    """What of an import was acknowledged: each event is accepted or among `refused`."""

    acknowledged: int = 0
    accepted: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint:
    def __init__(self, path: Path) -> None:
        self._path, self._verdicts = path, path.with_suffix(".refused")
        self._length = 0

    def read(self) -> Reached:
        """What an earlier run left; nothing where it cannot be trusted, for an import may always begin anew."""
        try:
            said = json.loads(self._path.read_text())
            acknowledged = int(said["acknowledged"])
            # Checkpoints once named no verdicts; what they acknowledged was reported as accepted.
            accepted, length = int(said.get("accepted", acknowledged)), int(said.get("refused_bytes", 0))
            refused = self._read_verdicts(length)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return Reached()
        if accepted + len(refused) != acknowledged:
            return Reached()
        self._length = length
        return Reached(acknowledged, accepted, refused)

    def write(self, acknowledged: int, accepted: int, refused: Sequence[dict[str, Any]]) -> None:
        """Verdicts first: counts never name what is not there.

        Args:
            acknowledged: in all, as `accepted`.
            refused: since the last `write`.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if refused:
            self._append(b"".join(json.dumps(verdict).encode() + b"\n" for verdict in refused))
        said = {"acknowledged": acknowledged, "accepted": accepted, "refused_bytes": self._length}
        write_atomically(self._path, json.dumps(said), durable=False)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._verdicts.unlink(missing_ok=True)

    def _read_verdicts(self, length: int) -> list[dict[str, Any]]:
        if not length:
            return []
        with self._verdicts.open("rb") as file:
            return [json.loads(line) for line in file.read(length).splitlines()]

    def _append(self, lines: bytes) -> None:
        with self._verdicts.open("ab") as file:
            # A run that was killed before it replaced the counts left verdicts that come again.
            file.truncate(self._length)
            file.write(lines)
        self._length += len(lines)
