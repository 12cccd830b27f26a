"""What a landed table says of itself, as its gate sees it."""

from pathlib import Path

import pytest

from assets.audit.schema import EVENTS, TOPIC
from assets.slices.progress import landed_ranges, last_slice, share
from core.lake import Lake
from core.lake.maintenance import compact
from quality.gates import complete
from tests.assets.audit.test_landing import event, put, records
from tests.assets.usage.lake import local_lake


def landed(folder: Path) -> Lake:
    put(folder, records([event(1), b"bad", event(1)]), records([event(2)], partition=1))
    put(folder, records([event(3)], partition=1, start=1))
    return local_lake(folder)


def test_ranges_rows_and_positions(tmp_path: Path) -> None:
    assert landed_ranges(local_lake(tmp_path), EVENTS, TOPIC) is None
    lake = landed(tmp_path)
    found = landed_ranges(lake, EVENTS, TOPIC)
    assert found is not None
    frame, rows, promised, positions = found
    assert frame.sort("partition").rows() == [("topic-1", 0, 0, 3, 3, 0), ("topic-1", 1, 0, 2, 2, 0)]
    assert (rows, promised, positions, last_slice(lake, EVENTS)) == (5, 5, {0: 3, 1: 2}, 2)
    assert complete(*found).holds
    newest = landed_ranges(lake, EVENTS, TOPIC, newest=1)
    assert newest is not None
    assert newest[0].rows() == [("topic-1", 1, 1, 2, 1, 0)]
    assert complete(*newest).holds


@pytest.mark.parametrize("newest", [1, 16])
def test_a_row_that_is_gone_is_noticed_wherever_it_stood(tmp_path: Path, newest: int) -> None:
    lake = landed(tmp_path)
    handle = lake.open(EVENTS)
    assert handle is not None
    handle.delete("partition = 0 and offset = 1")
    found = landed_ranges(local_lake(tmp_path), EVENTS, TOPIC, newest=newest)
    assert found is not None
    problems = complete(*found).problems
    assert "the table has 4 rows, its positions promise 5" in problems
    assert ("topic id topic-1, partition 0: offsets 0 to 2 hold 2 records" in problems) == (newest == 16)


def test_compaction_does_not_look_like_a_loss(tmp_path: Path) -> None:
    lake = landed(tmp_path)
    assert compact(lake, EVENTS).removed == 2
    found = landed_ranges(local_lake(tmp_path), EVENTS, TOPIC)
    assert found is not None
    assert complete(*found).holds


def test_small_partitions_get_all_they_need() -> None:
    assert share({0: 5, 1: 100, 2: 100}, 50) == {0: 5, 1: 22, 2: 23}
    assert share({0: 5, 1: 7}, 50) == {0: 5, 1: 7}
    assert share({0: 5, 1: 7}, 1) == {1: 1}
