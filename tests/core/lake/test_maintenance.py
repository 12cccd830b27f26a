"""Maintenance changes files and never rows, also beside a writer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import ColumnProperties, WriterProperties
from deltalake.exceptions import CommitFailedError

from core.lake import Lake
from core.lake.commit import commit, create, positions
from core.lake.maintenance import (
    RETENTION_HOURS,
    SMALL_BYTES,
    Compacted,
    compact,
    crowded,
    small_files,
    vacuum,
)
from core.lake.objects import sha256
from core.lake.read import read
from core.settings import ObjectSettings

TABLE = "numbers"
ORDER = ("text", "slice", "value")
ORDERS = pytest.mark.parametrize("order", [(), ORDER], ids=["as they are", "sorted"])
SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "slice": pl.Int64,
    "value": pl.Decimal(38, 9),
    "text": pl.String,
}
AGED = (RETENTION_HOURS + 1) * 3600


def lake_in(folder: Path) -> Lake:
    return Lake(ObjectSettings(objects_url=f"file://{folder}"))


def append(lake: Lake, number: int) -> None:
    rows = {
        "slice": [number] * 3,
        "value": ["1.5", str(number), "0.000000001"],
        "text": ["a" * number, "b", None],
    }
    frame = pl.DataFrame(rows).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    commit(lake, TABLE, frame, {"slice": number}, {"slice": number - 1 or None})


def filled(folder: Path, slices: int) -> Lake:
    lake = lake_in(folder)
    create(lake, TABLE, pl.DataFrame(schema=SCHEMA), ("slice",), description="made for a test")
    for number in range(1, slices + 1):
        append(lake, number)
    return lake


def rows(lake: Lake, *, version: int | None = None) -> list[tuple[object, ...]]:
    handle = lake.open(TABLE, version=version)
    assert handle is not None
    return pl.DataFrame(handle.to_pyarrow_table()).sort("slice", "value", "text").rows()


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "lake" / TABLE).glob("*.parquet")}


@ORDERS
def test_compaction_keeps_rows_positions_description_and_statistics(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    lake = filled(tmp_path, 25)
    handle = lake.open(TABLE)
    assert handle is not None
    before, version = rows(lake), handle.version()
    assert (small_files(handle), crowded(lake, {TABLE: 24, "absent": 0})) == (25, [TABLE])
    assert compact(lake, TABLE, order=order) == Compacted(25, 1)
    again = lake_in(tmp_path)
    handle = again.open(TABLE)
    assert handle is not None
    assert rows(again) == before
    assert (small_files(handle), crowded(again, {TABLE: 24})) == (1, [])
    assert positions(handle, ["slice"]) == {"slice": 25}
    assert handle.metadata().description == "made for a test"
    assert len(rows(again, version=version)) == len(before)
    (actions,) = pl.DataFrame(handle.get_add_actions(flatten=True)).rows(named=True)
    assert (actions["min.slice"], actions["max.slice"]) == (1, 25)
    some = read(again, TABLE, handle, SCHEMA, where=pl.col("slice") == 7, within=("slice", 7, 7))
    assert len(some) == 3
    assert compact(again, TABLE, order=order) == Compacted(0, 0)
    append(again, 26)
    assert positions(again.open(TABLE), ["slice"]) == {"slice": 26}


def test_files_put_together_are_sorted_and_their_row_groups_say_so(tmp_path: Path) -> None:
    lake = filled(tmp_path, 25)
    compact(lake, TABLE, order=ORDER)
    (path,) = in_use(lake)["path"]
    found = pl.read_parquet(path).select(ORDER)
    assert found.equals(found.sort(ORDER))
    assert not found.equals(found.sort("slice"))
    text = pq.read_metadata(path).row_group(0).column(list(SCHEMA).index("text")).statistics
    assert (text.min, text.max) == ("a", "b")


def test_a_large_file_stays_and_parts_its_neighbours(tmp_path: Path) -> None:
    lake = filled(tmp_path, 3)
    commit(lake, TABLE, large(4), {"slice": 4}, {"slice": 3})
    append(lake, 5)
    append(lake, 6)
    (stays,) = in_use(lake).filter(pl.col("min.slice") == 4)["path"]
    assert compact(lake, TABLE, order=ORDER) == Compacted(5, 2)
    now = in_use(lake).sort("min.slice")
    assert now.select("min.slice", "max.slice").rows() == [(1, 3), (4, 4), (5, 6)]
    assert now["path"][1] == stays
    assert compact(lake, TABLE, order=ORDER) == Compacted(0, 0)


def test_nothing_is_replaced_beside_a_file_without_statistics(tmp_path: Path) -> None:
    """It may hold rows of any slice, which an overwrite by slice would take away."""
    lake = filled(tmp_path, 2)
    handle = lake.open(TABLE)
    assert handle is not None
    silent = WriterProperties(default_column_properties=ColumnProperties(statistics_enabled="NONE"))
    commit(lake, TABLE, row(3), {"slice": 3}, {"slice": 2}, writer=silent)
    append(lake, 4)
    assert in_use(lake)["min.slice"].null_count() == 1
    before = rows(lake)
    assert compact(lake, TABLE, order=ORDER) == Compacted(0, 0)
    assert rows(lake_in(tmp_path)) == before


def test_each_group_is_durable_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second group cannot be read; the first one's files and entry of the log are on disk all the same."""
    lake = filled(tmp_path, 2)
    commit(lake, TABLE, large(3), {"slice": 3}, {"slice": 2})
    append(lake, 4)
    append(lake, 5)
    broken = in_use(lake).filter(pl.col("min.slice") == 5)["path"][0]
    Path(broken).write_bytes(b"torn")
    synced, fsync = set[int](), os.fsync

    def watched(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with pytest.raises(pl.exceptions.ComputeError):
        compact(lake, TABLE, order=ORDER)
    (first,) = in_use(lake).filter((pl.col("min.slice") == 1) & (pl.col("max.slice") == 2))["path"]
    assert os.stat(first).st_ino in synced


def test_rows_that_the_log_does_not_know_are_an_error(tmp_path: Path) -> None:
    lake = filled(tmp_path, 2)
    path = in_use(lake)["path"][0]
    pl.concat([pl.read_parquet(path)] * 2).write_parquet(path)
    before = in_use(lake)
    with pytest.raises(ValueError, match=r"holds 6 rows of slices (1 to 1|2 to 2), the log says 3"):
        compact(lake, TABLE, order=ORDER)
    assert in_use(lake).equals(before)


@pytest.mark.parametrize("damage", ["lost", "changed", "unknown"])
def test_a_file_that_is_not_what_it_was_stays_and_parts_its_neighbours(tmp_path: Path, damage: str) -> None:
    """One that is lost, one that reads well and has another SHA-256, one of which nobody knows what it was."""
    lake = filled(tmp_path, 5)
    hashes = {Path(path).name: sha256(Path(path).read_bytes()) for path in in_use(lake)["path"]}
    third = Path(in_use(lake).filter(pl.col("min.slice") == 3)["path"][0])
    rest = [row for row in rows(lake) if row[0] != 3]
    if damage == "lost":
        third.unlink()
    elif damage == "changed":
        pl.read_parquet(third).with_columns(value=pl.col("value") * 2).write_parquet(third)
    else:
        del hashes[third.name]
    broken = () if damage == "unknown" else (third.name,)
    assert compact(lake, TABLE, order=ORDER, hashes=hashes) == Compacted(4, 2, broken)
    now = in_use(lake_in(tmp_path)).sort("min.slice")
    assert now.select("min.slice", "max.slice").rows() == [(1, 2), (3, 3), (4, 5)]
    assert now["path"][1] == str(third)
    found = pl.concat(pl.read_parquet(now["path"][at]) for at in (0, 2)).sort("slice", "value", "text")
    assert found.select(SCHEMA.keys()).rows() == rest


def row(number: int) -> pl.DataFrame:
    found = pl.DataFrame({"slice": number, "value": "1", "text": "a"})
    return found.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def large(number: int) -> pl.DataFrame:
    """A slice whose file is not small."""
    noise = pl.Series([os.urandom(64).hex() for _ in range(SMALL_BYTES // 60)])
    return row(number).drop("text").join(pl.DataFrame({"text": noise}), how="cross").select(SCHEMA.keys())


def in_use(lake: Lake) -> pl.DataFrame:
    """Files that the table names, as the log describes them, with their whole path."""
    handle = lake.open(TABLE)
    assert handle is not None
    found = pl.DataFrame(handle.get_add_actions(flatten=True))
    return found.with_columns(path=f"{lake.uri(TABLE)}/" + pl.col("path"))


def test_a_checkpoint_comes_by_itself(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    assert (tmp_path / "lake" / TABLE / "_delta_log" / "_last_checkpoint").exists()


def test_only_files_out_of_use_for_seven_days_go(tmp_path: Path) -> None:
    lake = filled(tmp_path, 3)
    orphan = tmp_path / "lake" / TABLE / "part-of-a-killed-writer.parquet"
    orphan.write_bytes(b"torn")
    compact(lake, TABLE)
    before, everything = rows(lake), files(tmp_path)
    assert vacuum(lake, TABLE) == 0
    assert files(tmp_path) == everything
    age(orphan)
    assert vacuum(lake, TABLE) == 1
    assert files(tmp_path) == everything - {orphan.name}
    assert rows(lake) == before
    assert rows(lake, version=2)


def test_files_go_when_no_version_of_a_week_names_them(tmp_path: Path) -> None:
    """The log says when a file went out of use; as if that were long ago, the clock of the log is set back.
    So few commits have no checkpoint, which would say it too."""
    lake = filled(tmp_path, 2)
    compact(lake, TABLE)
    log = tmp_path / "lake" / TABLE / "_delta_log" / "00000000000000000003.json"
    now = int(time.time() * 1000)
    text = log.read_text()
    for line in text.splitlines():
        if '"remove"' in line:
            stamp = line.split('"deletionTimestamp":')[1].split(",")[0]
            text = text.replace(stamp, str(now - AGED * 1000))
    log.write_text(text)
    for path in (tmp_path / "lake" / TABLE).glob("*.parquet"):
        age(path)
    assert len(files(tmp_path)) == 3
    vacuum(lake_in(tmp_path), TABLE)
    assert len(files(tmp_path)) == 1
    with pytest.raises(FileNotFoundError):
        rows(lake_in(tmp_path), version=1)
    assert len(rows(lake_in(tmp_path))) == 6


def age(path: Path) -> None:
    then = time.time() - AGED
    os.utime(path, (then, then))


def test_an_append_that_a_compaction_overtook_is_written_again(tmp_path: Path) -> None:
    lake = filled(tmp_path, 3)
    handle = lake.open(TABLE)
    assert compact(lake_in(tmp_path), TABLE, order=ORDER) == Compacted(3, 1)
    for number in (4, 5):
        commit(lake, TABLE, row(number), {"slice": number}, {"slice": number - 1}, handle=handle)
    assert [row[0] for row in rows(lake_in(tmp_path))] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]


def test_an_append_is_not_written_again_to_a_table_that_is_of_another_topic_now(tmp_path: Path) -> None:
    lake = filled(tmp_path, 2)
    handle, other = lake.open(TABLE), lake_in(tmp_path).open(TABLE)
    assert other is not None
    other.alter.set_table_description("made for another test")
    with pytest.raises(CommitFailedError):
        commit(lake, TABLE, row(3), {"slice": 3}, {"slice": 2}, handle=handle)
    assert len(rows(lake_in(tmp_path))) == 6


@ORDERS
def test_nothing_is_lost_beside_a_writer(tmp_path: Path, order: tuple[str, ...]) -> None:
    """A process appends while this one compacts; both always succeed."""
    lake = filled(tmp_path, 2)
    code = (
        "import sys, pathlib; from tests.core.lake.test_maintenance import append, lake_in\n"
        "lake = lake_in(pathlib.Path(sys.argv[1]))\n"
        "for number in range(3, 63): append(lake, number)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    compactions = 0
    while writer.poll() is None:
        compactions += compact(lake, TABLE, order=order).added
    assert writer.returncode == 0
    assert compactions > 1
    compact(lake, TABLE, order=order)
    again = lake_in(tmp_path)
    counts = pl.DataFrame(rows(again), schema=SCHEMA, orient="row").group_by("slice").len().sort("slice")
    assert counts.rows() == [(number, 3) for number in range(1, 63)]
    assert positions(again.open(TABLE), ["slice"]) == {"slice": 62}
