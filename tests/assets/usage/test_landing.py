"""Every record has one fate, decided in the commit that lands it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from assets.slices.runs import DamagedError
from assets.usage.landing import IncompleteSliceError, land
from assets.usage.schema import EVENTS
from core.eventlog.api import Record
from core.lake import Lake
from core.lake.commit import StaleError
from tests.assets.usage.lake import TOPIC_ID, event, imports, local_lake, records, slice_of


def rows(lake: Lake) -> pl.DataFrame:
    handle = lake.open(EVENTS)
    assert handle is not None
    return pl.DataFrame(handle.to_pyarrow_table()).sort("partition", "offset")


def fates(lake: Lake) -> list[tuple[str, str | None]]:
    return list(rows(lake).select("fate", "code").iter_rows())


def put(folder: Path, *batches: list[Record]) -> None:
    land(local_lake(folder), folder / "index", slice_of(*batches), batches, imports)


def test_each_record_has_its_fate(tmp_path: Path) -> None:
    values = [
        event(1),
        event(1),
        event(1, quantity="6"),
        b"not json",
        event(2, minutes=-600_000),
        event(2, minutes=-600_000, importid="imp_1"),
        event(1, quantity="5.0"),
        event(3, minutes=6),
    ]
    put(tmp_path, records(values))
    assert fates(local_lake(tmp_path)) == [
        ("counted", None),
        ("duplicate", None),
        ("quarantined", "conflict"),
        ("rejected", "unreadable"),
        ("quarantined", "out_of_limits"),
        ("counted", None),
        ("duplicate", None),
        ("quarantined", "out_of_limits"),
    ]
    frame = rows(local_lake(tmp_path))
    assert frame["winner_offset"].to_list() == [None, 0, 0, None, None, None, 0, None]
    assert frame["raw"].to_list()[3] == b"not json"
    assert frame["tenant"].to_list() == ["org_a"] * 8


def test_identity_knows_neither_time_nor_slice_nor_partition(tmp_path: Path) -> None:
    put(tmp_path, records([event(n) for n in range(50)]))
    put(
        tmp_path,
        records([event(n) for n in range(40, 60)], start=50),
        records([event(3), event(70)], partition=2),
    )
    frame = rows(local_lake(tmp_path))
    assert frame["fate"].value_counts().sort("fate").rows() == [("counted", 61), ("duplicate", 11)]
    duplicate = frame.filter(pl.col("partition") == 2).row(0, named=True)
    assert (duplicate["winner_slice"], duplicate["winner_partition"], duplicate["winner_offset"]) == (1, 0, 3)


def test_a_second_attempt_lands_nothing(tmp_path: Path) -> None:
    batch = records([event(1), event(2)])
    lake = local_lake(tmp_path)
    first = land(lake, tmp_path / "index", slice_of(batch), [batch])
    again = land(lake, tmp_path / "index", slice_of(batch), [batch])
    assert (first.rows, first.already, again.rows, again.already) == (2, False, 0, True)
    assert len(rows(lake)) == 2


def test_a_slice_that_does_not_continue_is_refused(tmp_path: Path) -> None:
    put(tmp_path, records([event(1), event(2)]))
    with pytest.raises(StaleError):
        put(tmp_path, records([event(5), event(6)], start=3))
    with pytest.raises(StaleError):
        put(tmp_path, records([event(2), event(5)], start=1), records([event(7)], partition=1, start=1))
    assert len(rows(local_lake(tmp_path))) == 2


def test_of_a_stale_slice_only_the_rest_lands(tmp_path: Path) -> None:
    """A run asked for before others landed a part of it, one partition even beyond its end."""
    first = [event(n) for n in range(4)], [event(n, tenant="org_b") for n in range(3)]
    put(tmp_path, records(first[0][:2]), records(first[1], partition=1))
    put(tmp_path, records(first[0]), records(first[1][:2], partition=1))
    frame = rows(local_lake(tmp_path))
    assert frame.select("partition", "offset", "slice").rows() == [
        (0, 0, 1), (0, 1, 1), (0, 2, 2), (0, 3, 2), (1, 0, 1), (1, 1, 1), (1, 2, 1),
    ]  # fmt: skip
    assert set(frame["fate"]) == {"counted"}
    handle = local_lake(tmp_path).open(EVENTS)
    assert [handle.transaction_version(f"{TOPIC_ID}:{p}") for p in (0, 1)] == [4, 3] if handle else False


def test_a_missing_record_lands_nothing(tmp_path: Path) -> None:
    batch = records([event(1), event(2), event(3)])
    with pytest.raises(IncompleteSliceError):
        land(local_lake(tmp_path), tmp_path / "index", slice_of(batch), [batch[:1], batch[2:]])
    assert rows(local_lake(tmp_path)).is_empty()


@pytest.mark.parametrize("damage", ["gone", "behind", "ahead", "torn", "older"])
def test_the_index_is_rebuilt_from_the_lake(tmp_path: Path, damage: str) -> None:
    lake, index = local_lake(tmp_path), tmp_path / "index"
    put(tmp_path, records([event(n) for n in range(30)]))
    shutil.copytree(index, tmp_path / "old")
    put(tmp_path, records([event(n) for n in range(30, 60)], start=30))
    match damage:
        case "gone":
            shutil.rmtree(index)
        case "behind":
            shutil.rmtree(index)
            (tmp_path / "old").rename(index)
        case "ahead":
            shutil.rmtree(tmp_path / "lake")
            batch = records([event(n) for n in range(30)])
            land(lake, tmp_path / "other", slice_of(batch), [batch])
            batch = records([event(n) for n in range(30, 60)], start=30)
            land(lake, tmp_path / "other", slice_of(batch), [batch])
        case "torn":
            (index / "entries.bin").write_bytes((index / "entries.bin").read_bytes()[:-1])
        case "older":
            manifest = json.loads((index / "manifest.json").read_text())
            del manifest["format"]
            (index / "manifest.json").write_text(json.dumps(manifest))
            (index / "entries.bin").write_bytes(bytes((index / "entries.bin").stat().st_size))
    put(tmp_path, records([event(n) for n in range(70)], start=60))
    assert rows(lake)["fate"].value_counts().sort("fate").rows() == [("counted", 70), ("duplicate", 60)]


def test_a_damaged_index_lands_nothing_and_is_made_anew(tmp_path: Path) -> None:
    put(tmp_path, records([event(n) for n in range(30)]))
    entries = tmp_path / "index" / "entries.bin"
    entries.write_bytes(entries.read_bytes()[:-1] + b"\xff")
    again = records([event(n) for n in range(30)], start=30)
    with pytest.raises(DamagedError, match=r"entries\.bin"):
        put(tmp_path, again)
    assert len(rows(local_lake(tmp_path))) == 30
    put(tmp_path, again)
    assert fates(local_lake(tmp_path)) == [("counted", None)] * 30 + [("duplicate", None)] * 30


RUN = """
import sys
from pathlib import Path
from assets.usage import evidence, rollup
from assets.usage.landing import land
from tests.assets.usage.lake import event, local_lake, records, slice_of
folder = Path(sys.argv[1])
batch = records([event(number) for number in range(100)])
assert land(local_lake(folder), folder / "index", slice_of(batch), [batch]).fates == {"counted": 100}
rollup.roll_up(local_lake(folder))
evidence.evidence(local_lake(folder), 1, 1)
assert rollup.daily(local_lake(folder)).rows
assert "pandas" not in sys.modules
"""


def test_a_run_does_without_pandas(tmp_path: Path) -> None:
    """Some conversions of pyarrow import it: a CPU-second and a hundred megabytes of every run."""
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True)
