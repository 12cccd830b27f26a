"""Holds on the topic `usage.records`: while one stands, nothing it covers is purged."""

from dataclasses import dataclass
from typing import Final

LOCK: Final = 7_240_002
"""Advisory lock around deleting records and around placing a hold: a hold that was placed is obeyed."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A partition that must not be purged, or all of them (None)."""

    name: str
    partition: int | None

    def covers(self, partition: int) -> bool:
        return self.partition is None or self.partition == partition
