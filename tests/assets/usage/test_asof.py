"""Usage as of a slice: the same whatever came, was folded, compacted or deleted afterwards."""

from datetime import timedelta
from pathlib import Path

import pytest

from assets.usage import schema
from assets.usage.asof import NotYetKnownError, cells_as_of
from assets.usage.folding import fold_full_blocks
from core.lake import Lake
from core.lake.maintenance import compact, vacuum
from tests.assets.usage.lake import NOW, local_lake
from tests.assets.usage.test_folding import land_slices, table

SLICES = 40


def test_every_slice_stays_recomputable(tmp_path: Path) -> None:
    lake, known = local_lake(tmp_path), {}
    for number in range(1, SLICES + 1):
        land_slices(lake, tmp_path, number, number)
        known[number] = cells_as_of(lake, number)
    assert [int(known[number]["events"].sum()) for number in known] == [4 * number for number in known]
    fold_full_blocks(lake, 0, SLICES, (4, 16))
    for name in (schema.EVENTS, schema.HOURLY):
        assert compact(lake, name, order=schema.ORDERS.get(name, ())).removed
        vacuum(lake, name)
    spans = table(lake, schema.HOURLY).select("since", "slice").unique().sort("since").rows()
    assert spans[:2] == [(1, 16), (17, 32)]
    again = local_lake(tmp_path)
    for number, cells in known.items():
        assert cells_as_of(again, number).equals(cells), number
    assert cells_as_of(again, 0).is_empty()


def test_of_one_tenant_and_some_hours(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    land_slices(lake, tmp_path, 1, 6)
    fold_full_blocks(lake, 0, 6, (4, 16))
    whole = cells_as_of(lake, 3)
    first, last = NOW - timedelta(hours=2), NOW
    part = cells_as_of(lake, 3, since=first, until=last)
    assert part.equals(whole.filter((whole["hour"] >= first) & (whole["hour"] < last)))
    assert 0 < len(part) < len(whole)
    assert cells_as_of(lake, 3, tenant="org_a").equals(whole)
    assert cells_as_of(lake, 3, tenant="org_b").is_empty()


def test_a_slice_that_is_not_there_is_no_answer(tmp_path: Path) -> None:
    lake: Lake = local_lake(tmp_path)
    with pytest.raises(NotYetKnownError, match="ends at slice 0"):
        cells_as_of(lake, 1)
    land_slices(lake, tmp_path, 1, 2)
    with pytest.raises(NotYetKnownError, match="slice 3 is asked for, usage_hourly ends at slice 2"):
        cells_as_of(lake, 3)
