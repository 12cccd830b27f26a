"""A seeded stream of usage events with what real streams have: doubles, late ones, conflicts, rubbish."""

from datetime import UTC, datetime, timedelta

import numpy as np

from core.eventlog.api import NewRecord

TENANTS, SUBJECTS, MODELS, SOURCES = 50, 400, 6, 4
SLICE_MINUTES = 15
"""Event time that one slice covers."""
LATE_HOURS = 3
"""Mean delay of late events, exponentially distributed: most come within hours, some after a day."""
DOUBLE, CONFLICT, LATE, RUBBISH = 0.01, 0.0005, 0.005, 0.0005
MEMORY = 5_000
"""How many earlier events are kept, sampled evenly over all of them, to be sent again."""


class Workload:
    """`slice(n)` must be asked for 1, 2, 3 … : later slices send events of earlier ones again."""

    def __init__(
        self, topic: str, size: int, *, slices: int, seed: int = 1, conflict: float = CONFLICT
    ) -> None:
        self._topic, self._size, self._conflict = topic, size, conflict
        self._pick = np.random.default_rng(seed)
        self._start = datetime.now(UTC) - timedelta(minutes=SLICE_MINUTES * (slices + 2))
        self._memory: list[NewRecord] = []
        weights = 1 / np.arange(1, TENANTS + 1)
        self._tenants = weights / weights.sum()

    def slice(self, number: int) -> list[NewRecord]:
        """The records of slice `number`, in the order in which they are sent."""
        records = self._new(number)
        roll = self._pick.random(self._size)
        if self._memory:
            for place in np.flatnonzero(roll < DOUBLE + self._conflict):
                again = self._memory[self._pick.integers(len(self._memory))]
                conflict = roll[place] >= DOUBLE
                value = again.value.replace(b'"quantity":"', b'"quantity":"9') if conflict else again.value
                records[place] = NewRecord(again.topic, again.key, value)
        for place in np.flatnonzero(roll > 1 - RUBBISH):
            records[place] = NewRecord(self._topic, b"org_rubbish|", b'{"id":"no usage event"')
        self._remember(number, [records[place] for place in np.flatnonzero((roll > 0.5) & (roll < 0.9))])
        return records

    def _new(self, number: int) -> list[NewRecord]:
        pick, size, topic = self._pick, self._size, self._topic
        start = np.datetime64(self._start.replace(tzinfo=None), "us")
        minutes = SLICE_MINUTES * (number + np.arange(size) / size)
        minutes -= np.where(pick.random(size) < LATE, pick.exponential(LATE_HOURS * 60, size), 0)
        times = np.datetime_as_string(start + (minutes * 60e6).astype("timedelta64[us]"))
        columns = zip(
            (pick.integers(1 << 62, size=size) + 1).tolist(),
            times.tolist(),
            pick.choice(TENANTS, size, p=self._tenants).tolist(),
            pick.integers(SUBJECTS, size=size).tolist(),
            pick.integers(MODELS, size=size).tolist(),
            pick.integers(SOURCES, size=size).tolist(),
            (1 + pick.random(size) ** 4 * 9_000).astype(int).tolist(),
            np.where(pick.random(size) < 0.5, "input", "output").tolist(),
            strict=True,
        )
        return [
            NewRecord(
                topic,
                f"org_{tenant:032x}|cus_{subject}".encode(),
                f'{{"specversion":"1.0","type":"headrace.usage.v1","id":"{number:016x}{name:016x}",'
                f'"source":"agents/eu-{source}","time":"{time}Z","tenant":"org_{tenant:032x}",'
                f'"subject":"cus_{subject}","data":{{"meter":"llm.tokens.{direction}","quantity":"{quantity}",'
                f'"dimensions":{{"provider":"p{model % 2}","model":"model-{model}","region":"eu-1"}}}}}}'.encode(),
            )
            for name, time, tenant, subject, model, source, quantity, direction in columns
        ]

    def _remember(self, number: int, records: list[NewRecord]) -> None:
        """Slice n takes the n-th part of the memory, so that each earlier event is as likely as any other."""
        if not self._memory:
            self._memory = records[:MEMORY]
            return
        for place in self._pick.integers(len(self._memory), size=len(self._memory) // number):
            self._memory[place] = records[self._pick.integers(len(records))]
