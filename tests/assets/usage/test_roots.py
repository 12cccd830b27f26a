"""The seven roots of counting incidents, each shown to be impossible here by construction.

Found in what peers report: two commit points, increments, bounded dedupe keys, wall-clock cursors, destructive
reads, silent drops, and the same work under two ids.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from assets.slices.index import IdentityIndex
from assets.slices.progress import SLICE, position_name
from assets.usage.evidence import evidence
from assets.usage.landing import IncompleteSliceError, land
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from assets.usage.schema import EVENTS, HOURLY
from core.contracts.usage import parse
from core.eventlog.api import Record
from core.lake import Lake
from core.settings import DatabaseSettings
from quality import gates
from services.agents.metering import Tokens, ids_of, model_call
from services.agents.model import AgentSpec, RunContext, StoredMessage
from tests.assets.usage.lake import NOW, TOPIC_ID, event, imports, local_lake, records, slice_of
from tests.assets.usage.test_publish import empty, query

__all__ = ["empty"]


def rows(lake: Lake) -> pl.DataFrame:
    handle = lake.open(EVENTS)
    assert handle is not None
    return pl.DataFrame(handle.to_pyarrow_table())


def test_root_a_there_is_one_commit_point(tmp_path: Path) -> None:
    """Records, their fates and the next offset are in one entry of the Delta log: no crash can come between."""
    batch = records([event(1), event(1), b"bad"])
    lake = local_lake(tmp_path)
    landed = land(lake, tmp_path / "index", slice_of(batch), [batch])
    entry = tmp_path / "lake" / EVENTS / "_delta_log" / f"{landed.version:020d}.json"
    actions = [json.loads(line) for line in entry.read_text().splitlines()]
    transactions = {one["txn"]["appId"]: one["txn"]["version"] for one in actions if "txn" in one}
    assert transactions == {position_name(TOPIC_ID, 0): 3, SLICE: 1}
    assert sum("add" in one for one in actions) == 1
    # An index that is away, the one other thing that landing writes, is made from the lake.
    again = records([event(1)], start=3)
    land(lake, tmp_path / "elsewhere", slice_of(again), [again])
    assert rows(lake)["fate"].value_counts().sort("fate").rows() == [
        ("counted", 1), ("duplicate", 2), ("rejected", 1),
    ]  # fmt: skip


def test_root_b_nothing_is_incremented(tmp_path: Path, empty: DatabaseSettings) -> None:
    """What is published replaces what stood there: from any wrong number, and however often, it is the same."""
    lake = local_lake(tmp_path)
    for start in (0, 2):
        batch = records([event(start + 1), event(start + 3)], start=start)
        land(lake, tmp_path / "index", slice_of(batch), [batch])
        for step in (roll_up, daily):
            step(lake)
            step(lake)
        # A publication that died half way, or a hand that changed a cell, leaves no trace in the next.
        query(empty, "update usage_cell set quantity = 999, events = 999, lake_version = -1")
        publish(lake, empty)
        publish(lake, empty)
    hours = query(empty, "select sum(quantity), sum(events)::int from usage_cell where grain = 'hour'")
    assert hours == [(Decimal(15), 3)], "e1, e3 and e5; e3 came twice"


def test_root_c_the_key_of_an_event_is_unbounded_and_unambiguous(tmp_path: Path) -> None:
    """No expiry, no clock and no separator that a name could contain."""
    lake = local_lake(tmp_path)
    first = records([event(1)])
    land(lake, tmp_path / "index", slice_of(first), [first])
    for number in range(2, 30):  # much other traffic, and years
        batch = records([event(1_000 + number)], start=number - 1)
        land(lake, tmp_path / "index", slice_of(batch), [batch])
    years = int((NOW + timedelta(days=3_000)).timestamp() * 1000)
    late = Record("usage.records", 0, 29, b"org_a|", event(1, importid="imp_1"), years)
    land(lake, tmp_path / "index", slice_of([late]), [[late]], imports)
    row = rows(lake).filter(pl.col("offset") == 29).row(0, named=True)
    assert (row["fate"], row["winner_slice"], row["winner_offset"]) == ("duplicate", 1, 0)
    handle = lake.open(EVENTS)
    assert handle is not None
    index = IdentityIndex(tmp_path / "index", str(handle.metadata().id))
    with index.locked():
        assert len(index) == 29, "one entry an event, none given up for another"


@pytest.mark.parametrize("times", [(0, 0, 0), (100, 50, 0), (0, -10_000, 10_000)])
def test_root_d_the_cursor_is_an_offset(tmp_path: Path, times: tuple[int, int, int]) -> None:
    """Clocks of the log that stand still, or run back and forth, hide no record and bring none twice."""
    lake = local_lake(tmp_path)
    for offset, seconds in enumerate(times):
        received = int((NOW + timedelta(seconds=seconds)).timestamp() * 1000)
        one = Record("usage.records", 0, offset, b"org_a|", event(offset, importid="imp_1"), received)
        land(lake, tmp_path / "index", slice_of([one]), [[one]], imports)
    assert rows(lake).sort("offset").select("offset", "slice", "fate").rows() == [
        (0, 1, "counted"), (1, 2, "counted"), (2, 3, "counted"),
    ]  # fmt: skip


def test_root_e_reading_destroys_nothing(tmp_path: Path) -> None:
    """A slice that is read and not committed is there again: the position moves with the commit and nothing else."""
    batch = records([event(1), event(3)])
    lake = local_lake(tmp_path)

    def dying() -> Iterator[list[Record]]:
        yield batch[:1]
        raise OSError("the run died while it read")

    with pytest.raises(OSError, match="died while it read"):
        land(lake, tmp_path / "index", slice_of(batch), dying())
    assert land(lake, tmp_path / "index", slice_of(batch), [batch]).fates == {"counted": 2}


def test_root_f_no_record_is_dropped_in_silence(tmp_path: Path) -> None:
    """Every offset has a row with a fate, or nothing lands; and one that lost its fate on the way stops it all."""
    values = [event(1), event(1), event(1, quantity="6"), b"", b"\xff", b"{}", event(2, minutes=9), event(4)]
    batch = records(values)
    lake = local_lake(tmp_path)
    with pytest.raises(IncompleteSliceError):
        land(lake, tmp_path / "index", slice_of(batch), [batch[:3], batch[4:]])
    land(lake, tmp_path / "index", slice_of(batch), [batch])
    assert rows(lake)["offset"].sort().to_list() == list(range(len(values)))
    assert rows(lake)["fate"].null_count() == 0
    assert rows(lake).filter(pl.col("fate").is_in(["quarantined", "rejected"]))["code"].null_count() == 0
    roll_up(lake)
    found = evidence(lake, 1, 1)
    assert gates.conservation(found.conservation).holds
    handle = lake.open(HOURLY)
    assert handle is not None
    handle.update(updates={"rejected": "rejected - 1"}, predicate="kind = 'fate'")
    assert gates.conservation(evidence(lake, 1, 1).conservation).problems


def test_root_g_the_same_work_has_one_id(tmp_path: Path) -> None:
    """Ids come from the work: a call that two processes report, each at its own time, is one event."""
    reports = [model_call(asked("run_1"), 1, "acme", "m", Tokens(input=100, output=20)) for _ in range(2)]
    assert ids_of(reports[0]) == ids_of(reports[1])
    assert not {*ids_of(reports[0])} & {
        *ids_of(model_call(asked("run_1"), 2, "acme", "m", Tokens(input=100)))
    }
    assert not {*ids_of(reports[0])} & {
        *ids_of(model_call(asked("run_2"), 1, "acme", "m", Tokens(input=100)))
    }
    batch = [
        Record("usage.records", 0, offset, one.key, one.value, int(parse(one.value).time.timestamp() * 1000))
        for offset, one in enumerate([*reports[0], *reports[1]])
    ]
    lake = local_lake(tmp_path)
    land(lake, tmp_path / "index", slice_of(batch), [batch])
    counted = rows(lake).filter(pl.col("fate") == "counted")
    assert sorted(counted["event_id"]) == sorted(ids_of(reports[0]))


def asked(run: str) -> RunContext:
    return RunContext(
        run_id=run, tenant_id="org_a", user="usr_1", agent_id="", agent_version=0, spec=AgentSpec(model="acme/m"),
        conversation_id="cnv_1", epoch=1, history=(), input=StoredMessage("msg_1", "user", "x"), checkpoints=(),
        deadline=NOW,
    )  # fmt: skip
