"""Folding changes how many files are read, never a value."""

from pathlib import Path

import polars as pl
import pytest

from assets.usage import schema
from assets.usage.evidence import evidence
from assets.usage.folding import fold_full_blocks
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.rollup import BehindFoldError, daily, roll_up
from core.lake import Lake
from core.settings import DatabaseSettings
from quality.gates import billed
from quality.gates import conservation as gate
from tests.assets.usage.lake import event, local_lake, records, slice_of
from tests.assets.usage.test_publish import cells, empty, go, query

__all__ = ["empty"]

CELL = ["tenant", "meter", "hour", "dimensions"]
DAY = ["tenant", "meter", "day", "dimensions"]
FATE = ["tenant", "topic_id", "partition"]


def land_slices(lake: Lake, folder: Path, first: int, last: int) -> None:
    """Slice n: three records of its own hour, a late one of the first hour, a repeated and a bad one."""
    for number in range(first, last + 1):
        mine = [event(number * 10 + extra, minutes=-60 * (number % 5)) for extra in range(3)]
        batch = records(
            [*mine, event(number * 10 + 5, minutes=-60 * 400), event(10, minutes=-60), b"bad"],
            start=(number - 1) * 6,
        )
        land(lake, folder / "index", slice_of(batch), [batch])
        roll_up(lake)
        daily(lake)


def table(lake: Lake, name: str) -> pl.DataFrame:
    handle = lake.open(name)
    assert handle is not None
    return pl.DataFrame(handle.to_pyarrow_table())


def files(lake: Lake, name: str) -> int:
    handle = lake.open(name)
    assert handle is not None
    return len(handle.file_uris())


def values(lake: Lake) -> list[pl.DataFrame]:
    """The absolute values of everything: hours, days, fates."""
    hourly, days = table(lake, schema.HOURLY), table(lake, schema.DAILY)
    sums = [
        hourly.filter(kind=schema.CELL).group_by(CELL).agg(pl.col("quantity", "events").sum()).sort(CELL),
        days.group_by(DAY).agg(pl.col("quantity", "events").sum()).sort(DAY),
        hourly.filter(kind=schema.FATE)
        .group_by(FATE)
        .agg(pl.col(schema.FATE_COUNTS).sum(), pl.col("next_offset").max())
        .sort(FATE),
    ]
    assert all(len(frame) for frame in sums)
    return sums


def test_values_stay_and_files_become_few(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    land_slices(lake, tmp_path, 1, 34)
    before, many = values(lake), files(lake, schema.HOURLY)
    assert fold_full_blocks(lake, 0, 34) == 2
    for old, new in zip(before, values(local_lake(tmp_path)), strict=True):
        assert old.equals(new)
    assert many == 34 * 2
    assert files(lake, schema.HOURLY) == (2 + 2) * 2
    assert files(lake, schema.DAILY) == 2 + 2
    spans = table(lake, schema.HOURLY).select("since", "slice").unique().sort("since").rows()
    assert spans == [(1, 16), (17, 32), (33, 33), (34, 34)]


def test_a_larger_block_takes_the_smaller_ones_in(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    for number in range(1, 18):
        land_slices(lake, tmp_path, number, number)
        fold_full_blocks(lake, number - 1, number, (2, 8))
    spans = table(lake, schema.DAILY).select("since", "slice").unique().sort("since").rows()
    assert spans == [(1, 8), (9, 16), (17, 17)]
    whole = values(lake)
    (tmp_path / "plain").mkdir()
    plain = local_lake(tmp_path / "plain")
    land_slices(plain, tmp_path / "plain", 1, 17)
    assert all(folded.equals(single) for folded, single in zip(whole, values(plain), strict=True))


def test_publication_goes_on_over_folds_and_from_a_restored_database(
    tmp_path: Path, empty: DatabaseSettings
) -> None:
    lake = local_lake(tmp_path)
    for number in range(1, 20):
        land_slices(lake, tmp_path, number, number)
        go(lake, empty)
        if number == 10:
            query(
                empty,
                "truncate usage_cell, usage_conservation, usage_watermark, usage_publication, usage_quarantine",
            )
    through = cells(empty), query(empty, "select * from usage_conservation order by 1, 2, 3")
    assert files(lake, schema.DAILY) == 1 + 3
    query(
        empty, "truncate usage_cell, usage_conservation, usage_watermark, usage_publication, usage_quarantine"
    )
    publish(local_lake(tmp_path), empty)
    assert cells(empty) == through[0]
    assert query(
        empty, "select landed, counted, duplicates, quarantined, rejected from usage_conservation"
    ) == [(19 * 6, 19 * 4, 19, 0, 19)]


def test_the_gate_takes_a_folded_block_as_a_whole(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    land_slices(lake, tmp_path, 1, 18)
    fold_full_blocks(lake, 0, 18)
    for first, landed in ((1, 18), (9, 18), (16, 18), (17, 2), (18, 1)):
        found = evidence(lake, first, 18)
        frame = found.conservation
        assert gate(frame).problems == []
        assert billed(found.billed) == []
        assert frame["landed"].sum() == landed * 6


def test_days_do_not_count_a_folded_slice_twice(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    land_slices(lake, tmp_path, 1, 3)
    behind = lake.open(schema.DAILY)
    assert behind is not None
    land_slices(lake, tmp_path, 4, 16)
    fold_full_blocks(lake, 0, 16)
    put_back(tmp_path, schema.DAILY, 3)
    with pytest.raises(BehindFoldError, match="remove usage_daily"):
        daily(local_lake(tmp_path))


def put_back(folder: Path, name: str, commits: int) -> None:
    """The table as a backup of that time has it."""
    for entry in (folder / "lake" / name / "_delta_log").iterdir():
        if entry.name.split(".")[0].isdigit() and int(entry.name.split(".")[0]) > commits:
            entry.unlink()
    (folder / "lake" / name / "_delta_log" / "_last_checkpoint").unlink()
