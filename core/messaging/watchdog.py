"""Is everybody who should consume consuming, and how far behind is a group?

A consumer that died silently looks like a quiet topic. So each one says what it is expected to do,
beats whenever it reads, and readiness compares the two. Lag is measured by somebody else: a consumer
that stands still cannot tell.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from core import telemetry
from core.eventlog.api import EventLog, OffsetOutOfRangeError, TopicPartition

STALLED_SECONDS: Final = 30.0


class ConsumerStalledError(Exception):
    """A consumer that should be reading is not."""


class Watchdog:
    """Of one consumer. Add `check` to the service's readiness checks.

    Args:
        source: the topics it reads.
        group: its consumer group.
        stalled_after: seconds without a beat after which it counts as stalled.
    """

    def __init__(self, source: str, group: str, *, stalled_after: float = STALLED_SECONDS) -> None:
        self._name = f"{group} on {source}"
        self._stalled_after = stalled_after
        self._expected = False
        self._last = float("-inf")
        self.holding = 0
        """Partitions held at the last beat; none is right where a group has more members than partitions."""
        telemetry.CONSUMER_EXPECTED.labels(source, group).set_function(lambda: float(self._expected))
        telemetry.CONSUMER_CONSUMING.labels(source, group).set_function(lambda: float(self.consuming))

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Inside, the consumer is expected to beat. Left by an error it stays expected: it died."""
        self._expected = True
        self._last = time.monotonic()
        yield
        self._expected = False

    def beat(self, held: Collection[TopicPartition]) -> None:
        """The consumer has just read, or found nothing new."""
        self._last = time.monotonic()
        self.holding = len(held)

    @property
    def consuming(self) -> bool:
        return time.monotonic() - self._last < self._stalled_after

    async def check(self) -> None:
        """Raises: ConsumerStalledError where it should consume and does not."""
        if self._expected and not self.consuming:
            raise ConsumerStalledError(
                f"{self._name} has read nothing for {self._stalled_after:g} s; restart it"
            )


@dataclass(frozen=True, slots=True)
class Lag:
    records: int
    seconds: float
    """Age of the oldest record that is not done; 0 without lag."""


async def group_lag(log: EventLog, topic: str, group: str) -> Lag:
    """How far the group's commits are behind the end of the topic. Raises: as `EventLog`."""
    return await lag(log, topic, await log.committed(group, topic))


async def lag(log: EventLog, topic: str, positions: Mapping[int, int]) -> Lag:
    """How far these next offsets are behind the end; a partition without one counts from its start."""
    records, oldest = 0, float("inf")
    for partition, bounds in (await log.bounds(topic)).items():
        start = max(positions.get(partition, bounds.low), bounds.low)
        if start >= bounds.high:
            continue
        records += bounds.high - start
        try:
            async for batch in log.read(topic, partition, start, start + 1):
                oldest = min(oldest, batch[0].timestamp_ms / 1000)
        except OffsetOutOfRangeError:
            continue  # purged between the two questions
    return Lag(records, max(0.0, time.time() - oldest) if records and oldest < float("inf") else 0.0)
