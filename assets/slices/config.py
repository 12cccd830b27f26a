"""The slice a run carries."""

import dagster as dg
from pydantic import Field

from core.eventlog.api import Slice


class SliceConfig(dg.Config):
    """Decided by the sensor: [start, end) of each partition. No ranges: finish what an earlier run left."""

    topic_id: str = ""
    ranges: dict[str, list[int]] = Field(default_factory=dict)

    def slice(self, topic: str) -> Slice:
        return Slice(topic, self.topic_id, {int(p): (start, end) for p, (start, end) in self.ranges.items()})
