"""Acceptance checks 3 and 7 of metering: identity, and sender reconciliation. Check 4 is in `test_incidents`."""

import random
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import polars as pl
import pytest

from assets.usage.evidence import evidence
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from assets.usage.schema import EVENTS
from core.contracts.usage import UsageData, UsageEvent
from core.eventlog.api import Record
from core.prices import PriceBook, read_file
from core.prices.file import DEFAULT_FILE
from core.rating import Usage, rate
from core.settings import DatabaseSettings
from quality import gates
from tests.assets.usage.lake import NOW, local_lake, slice_of
from tests.assets.usage.test_producers import TABLES as PRODUCER_TABLES
from tests.assets.usage.test_producers import Log, checkpoint
from tests.assets.usage.test_producers import event as numbered
from tests.assets.usage.test_publish import TABLES, query


@pytest.fixture
def empty(postgres: DatabaseSettings) -> Iterator[DatabaseSettings]:
    query(postgres, f"truncate {', '.join(TABLES)}, {PRODUCER_TABLES}")
    yield postgres
    query(postgres, f"truncate {', '.join(TABLES)}, {PRODUCER_TABLES}")


def said(text: str) -> None:
    """A figure, for whoever runs this with -s."""
    sys.stdout.write(f"{text}\n")


class Billed:
    """Slices of a topic land and are published; what they come to in money."""

    def __init__(self, folder: Path, database: DatabaseSettings) -> None:
        self._folder, self._database, self.lake = folder, database, local_lake(folder)
        self._ends: dict[int, int] = {}
        self.slices = 0

    def carry(self, events: Sequence[UsageEvent], *, partition: int, later: timedelta = timedelta()) -> None:
        start = self._ends.get(partition, 0)
        received = int((NOW + later).timestamp() * 1000)
        batch = [
            Record("usage.records", partition, start + at, one.key, one.encode(), received)
            for at, one in enumerate(events)
        ]
        self._ends[partition] = start + len(batch)
        # An index that was lost, as on another machine, is made from the lake.
        self.slices += 1
        land(self.lake, self._folder / f"index {self.slices % 3}", slice_of(batch), [batch])
        roll_up(self.lake)
        found = evidence(self.lake, self.slices, self.slices)
        assert gates.conservation(found.conservation).problems + gates.billed(found.billed) == []
        daily(self.lake)
        publish(self.lake, self._database)

    def amount(self) -> Decimal:
        cells = query(
            self._database,
            "select meter, dimensions, period_start, quantity from usage_cell where grain = 'hour' and tenant_id = 'org_a'",
        )
        return rate([Usage(*row) for row in cells], PriceBook("org_a", read_file(DEFAULT_FILE))).unrounded

    def fates(self) -> list[tuple[int, int, str, str | None]]:
        handle = self.lake.open(EVENTS)
        assert handle is not None
        rows = pl.DataFrame(handle.to_pyarrow_table()).sort("slice", "partition", "offset")
        return list(rows.select("slice", "partition", "fate", "code").iter_rows())


def usage(source: str, named: str, quantity: str = "1000000", **more: object) -> UsageEvent:
    fields = {"id": named, "source": source, "time": NOW, "tenant": "org_a", "type": "headrace.usage.v1", "specversion": "1.0",
              "data": UsageData("llm.tokens.input", quantity, {})} | more  # fmt: skip
    return msgspec.convert(fields, UsageEvent)


def test_3_identity_is_not_time_place_or_spelling(tmp_path: Path, empty: DatabaseSettings) -> None:
    """One event however often, whenever and wherever it comes; two events that only look alike are two."""
    site, event = Billed(tmp_path, empty), usage("crm", "one")
    site.carry([event, usage("a-b", "c"), usage("a", "b-c")], partition=0)
    billed = site.amount()
    assert (billed, site.fates()) == (Decimal("7.5"), [(1, 0, "counted", None)] * 3)
    days = timedelta(days=40)
    for partition, later, what in (
        (0, timedelta(minutes=1), "again"),
        (0, days, "after 40 days"),
        (3, days, "from another partition"),
        (7, days, "after the topic was given more partitions"),
    ):
        site.carry([event], partition=partition, later=later)
        assert site.fates()[-1][2:] == ("duplicate", None), what
        assert site.amount() == billed, what
    # Another time stamp, and another quantity: the same event says something else.
    for change in (
        {"time": NOW + timedelta(seconds=1)},
        {"data": UsageData("llm.tokens.input", "1000001", {})},
    ):
        site.carry([msgspec.structs.replace(event, **change)], partition=3, later=days)
        assert site.fates()[-1][2:] == ("quarantined", "conflict")
        assert site.amount() == billed
    listed = query(empty, "select code, state, version -> 'data' ->> 'quantity', counted -> 'data' ->> 'quantity' "
                          "from usage_quarantine order by slice")  # fmt: skip
    assert listed == [("conflict", "open", "1000000", "1000000"), ("conflict", "open", "1000001", "1000000")]
    said(
        f"check 3: 9 records of 3 events in {site.slices} slices; 3 counted, 4 duplicates, 2 quarantined; billed {billed} USD"
    )


def test_7_senders_are_reconciled_by_number(tmp_path: Path, empty: DatabaseSettings) -> None:
    """One event of 20,000 is dropped at the producer and another sent twice under two ids: both are named with the
    slice that brings the checkpoint; `make bench NAME=senders` does it with a million."""
    log, size = Log(tmp_path, empty), 20_000
    sent = [numbered(n) for n in range(1, size + 1)]
    for low in range(0, size, 5_000):
        part = [one for one in sent[low : low + 5_000] if one.sequence != 13_577]
        log.write(part[::2])
        log.write(part[1::2], partition=1)
        if low == 5_000:
            log.write([numbered(7_001, named="the same work under another id")], partition=1)
        log.carry()
    log.write([checkpoint(sent)])
    done = log.carry()
    assert (len(done.named), done.open, done.missing) == (1, 1, 1)
    [row] = log.checkpoints()
    assert (row[0], *row[3:6]) == ("crm", "incomplete", [[13_577, 13_577]], [[7_001, 7_001]])
    log.write([sent[13_576]])
    assert log.carry().missing == 0
    said(
        f"check 7: of {size} events 1 missing and 1 doubled, named {row[4]} and {row[5]} with the checkpoint's own slice"
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_7_an_hour_with_restarts_raises_no_alarm(tmp_path: Path, empty: DatabaseSettings, seed: int) -> None:
    """Sixty minutes, a slice and a checkpoint each, two partitions one of which lags; the producers die at any point,
    send again what they are not sure of, and go on under a new incarnation or with later numbers."""
    log, dice = Log(tmp_path, empty), random.Random(seed)
    restarts, named, slices = 0, 0, 0
    lives = {"crm": ("a", 1), "gpu": ("", 1)}
    pending: dict[str, list[UsageEvent]] = {"crm": [], "gpu": []}
    for minute in range(60):
        for producer, (incarnation, begin) in list(lives.items()):
            fresh = [
                numbered(begin + n, incarnation=incarnation, producer=producer)
                for n in range(dice.randint(1, 20))
            ]
            number = begin + len(fresh)
            lives[producer] = incarnation, number
            pending[producer] += fresh
            for one in fresh:
                log.write([one] * dice.choice([1, 1, 1, 2]), partition=dice.randint(0, 1))
            if dice.random() < 0.2:  # it dies before its checkpoint, or behind it
                restarts += 1
                if dice.random() < 0.5:
                    log.write([checkpoint(pending[producer])])
                for one in dice.sample(pending[producer], len(pending[producer]) // 2):
                    log.write([one], partition=dice.randint(0, 1))
                # One life after another, or numbers with a hole that nothing will ever fill.
                hole = number + dice.randint(1, 50)
                lives[producer] = (f"life {minute}", 1) if producer == "crm" else ("", hole)
                pending[producer] = []
            else:
                log.write([checkpoint(pending[producer])], partition=dice.randint(0, 1))
                pending[producer] = []
        done = log.carry(*dice.choice([(0,), (1,), (0, 1), (0, 1)]))
        slices, named = slices + 1, named + len(done.named)
    done = log.carry()
    states = {row[3] for row in log.checkpoints()}
    assert (named + len(done.named), done.open, states) == (0, 0, {"complete"})
    assert restarts > 10
    said(
        f"check 7: {slices} slices with {restarts} restarts and {len(log.checkpoints())} checkpoints: no alarm"
    )
