"""Law 1 on real stores: what is not expected is refused, one of many wins, an unknown outcome is looked up."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest

from core.lake import Lake
from core.lake.commit import StaleError, commit, create, positions
from core.lake.read import read, spans
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings
from tests.core.lake.lossy import Loss, LossyProxy, lossy_proxy

REPOSITORY = Path(__file__).parents[3]
SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {"slice": pl.Int64, "who": pl.String}
EMPTY = pl.DataFrame(schema=SCHEMA)


def on_folder(folder: Path) -> Lake:
    return Lake(ObjectSettings(objects_url=folder.as_uri()))


def rows(number: int, who: str = "a") -> pl.DataFrame:
    return pl.DataFrame({"slice": [number] * 3, "who": [who] * 3})


def content(lake: Lake, table: str) -> list[tuple[int, str]]:
    handle = lake.open(table)
    assert handle is not None
    return sorted(pl.DataFrame(handle.to_pyarrow_table()).rows())


def test_only_the_expected_position_is_moved(tmp_path: Path) -> None:
    lake = on_folder(tmp_path)
    create(lake, "t", EMPTY, ["slice"])
    assert commit(lake, "t", rows(1), {"slice": 1, "p:0": 3}, {"slice": None, "p:0": None}) == 1
    for wrong in ({"slice": None, "p:0": None}, {"slice": 1, "p:0": 2}, {"slice": 2, "p:0": 3}):
        with pytest.raises(StaleError, match="t has moved on") as refused:
            commit(lake, "t", rows(9), {"slice": 2, "p:0": 6}, wrong)
        assert refused.value.found == {"slice": 1, "p:0": 3}
    assert content(on_folder(tmp_path), "t") == [(1, "a")] * 3
    assert positions(on_folder(tmp_path).open("t"), ["slice", "p:0", "other"]) == {
        "slice": 1,
        "p:0": 3,
        "other": None,
    }


def test_a_handle_that_was_left_behind_does_not_move_the_position_back(tmp_path: Path) -> None:
    """delta-rs alone accepts it: the comparison is what refuses."""
    create(on_folder(tmp_path), "t", EMPTY, ["slice"])
    behind, ahead = on_folder(tmp_path), on_folder(tmp_path)
    for lake in (behind, ahead):
        assert lake.open("t") is not None
    for number in (1, 2):
        commit(ahead, "t", rows(number), {"slice": number}, {"slice": number - 1 or None})
    with pytest.raises(StaleError):
        commit(behind, "t", rows(1), {"slice": 1}, {"slice": None})
    assert positions(behind.open("t"), ["slice"]) == {"slice": 2}


def test_a_commit_that_came_after_the_handle_is_a_conflict(tmp_path: Path) -> None:
    create(on_folder(tmp_path), "t", EMPTY, ["slice"])
    behind = on_folder(tmp_path)
    handle = behind.open("t")
    commit(on_folder(tmp_path), "t", rows(1), {"slice": 1, "p:0": 3}, {"slice": None, "p:0": None})
    with pytest.raises(StaleError):
        commit(behind, "t", rows(1, "b"), {"slice": 1, "p:0": 2}, {"slice": None, "p:0": None}, handle=handle)
    assert content(on_folder(tmp_path), "t") == [(1, "a")] * 3


def test_a_table_is_made_once(tmp_path: Path) -> None:
    first = create(on_folder(tmp_path), "t", EMPTY, ["slice"], description="of one")
    again = create(on_folder(tmp_path), "t", EMPTY, ["slice"], description="of another")
    assert str(first.metadata().id) == str(again.metadata().id)
    assert again.metadata().description == "of one"


def start_racer(url: str, name: str, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.core.lake.racer", url, name, str(last)],
        cwd=REPOSITORY,
        env={"PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_race_win_each_slice_once(tmp_path: Path) -> None:
    last, url = 25, tmp_path.as_uri()
    create(on_folder(tmp_path), "race", EMPTY, ["slice"])
    racers = [start_racer(url, name, last) for name in ("a", "b", "c")]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        answers = [json.loads(racer.communicate("\n", timeout=120)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert sorted(number for won in answers for number in won) == list(range(1, last + 1))
    found = content(on_folder(tmp_path), "race")
    winner = {number: name for name, won in zip("abc", answers, strict=True) for number in won}
    assert found == [(number, winner[number]) for number in sorted(winner) for _ in range(3)]


def test_reading_opens_only_what_can_hold_it(tmp_path: Path) -> None:
    lake = on_folder(tmp_path)
    create(lake, "t", EMPTY, ["slice"])
    for number in range(1, 6):
        commit(lake, "t", rows(number), {"slice": number}, {"slice": number - 1 or None})
    handle = lake.open("t")
    assert handle is not None
    newest = max((tmp_path / "lake" / "t").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    found = read(lake, "t", handle, SCHEMA, where=pl.col("slice") < 3, within=("slice", 1, 2))
    assert sorted(found["slice"]) == [1, 1, 1, 2, 2, 2]
    with pytest.raises(OSError, match="No such file"):
        read(lake, "t", handle, SCHEMA, where=pl.col("slice") > 3, within=("slice", 4, 9))


def test_pieces_are_bounded_by_rows(tmp_path: Path) -> None:
    lake = on_folder(tmp_path)
    create(lake, "t", EMPTY, ["slice"])
    for number in range(1, 8):
        frame = rows(number) if number != 4 else pl.concat([rows(4)] * 5)
        commit(lake, "t", frame, {"slice": number}, {"slice": number - 1 or None})
    handle = lake.open("t")
    assert handle is not None
    assert list(spans(handle, "slice", 1, 7, rows=6)) == [(1, 2), (3, 3), (4, 4), (5, 6), (7, 7)]
    assert list(spans(handle, "slice", 2, 7, rows=10**9)) == [(2, 7)]
    assert list(spans(handle, "slice", 8, 7, rows=6)) == []
    handle.optimize.compact()
    assert list(spans(handle, "slice", 1, 7, rows=14)) == [(1, 2), (3, 4), (5, 6), (7, 7)]


def test_one_handle_for_a_piece_of_work_and_it_follows(tmp_path: Path) -> None:
    lake, other = on_folder(tmp_path), on_folder(tmp_path)
    assert lake.open("t") is None
    create(other, "t", EMPTY, ["slice"])
    held = lake.open("t")
    commit(other, "t", rows(1), {"slice": 1}, {"slice": None})
    assert lake.open("t") is held
    assert content(lake, "t") == [(1, "a")] * 3
    past = lake.open("t", version=0)
    assert past is not None
    assert past.version() == 0
    assert lake.open("t") is held
    lake.forget("t")
    assert lake.open("t") is not held


@pytest.fixture(scope="module")
def bucket(minio: ObjectSettings, postgres: DatabaseSettings) -> ObjectSettings:
    """MinIO with a bucket for the lake."""
    settings = minio.model_copy(update={"objects_bucket_prefix": "commit-"})

    async def make() -> None:
        async with open_objects(settings, postgres) as objects:
            await objects.ensure_bucket("lake", versioned=False)

    asyncio.run(make())
    return settings


@pytest.fixture
def proxy(bucket: ObjectSettings) -> Iterator[LossyProxy]:
    port = urlsplit(bucket.objects_url).port
    assert port is not None
    with lossy_proxy(port) as running:
        yield running


@pytest.mark.parametrize("loss", ["answer", "request"])
def test_a_commit_whose_outcome_is_unknown_happens_once(
    bucket: ObjectSettings, proxy: LossyProxy, loss: Loss
) -> None:
    """The store has taken the commit and its answer is lost, or it never saw it: the table decides."""
    direct = Lake(bucket)
    through = Lake(bucket.model_copy(update={"objects_url": f"s3://127.0.0.1:{proxy.port}"}))
    create(direct, loss, EMPTY, ["slice"])
    commit(through, loss, rows(1), {"slice": 1}, {"slice": None})
    proxy.lose(loss, b"/_delta_log/00000000000000000002.json")
    version = commit(through, loss, rows(2), {"slice": 2}, {"slice": 1})
    assert proxy.lost == 1
    assert version >= 2
    assert content(direct, loss) == [(1, "a")] * 3 + [(2, "a")] * 3
    with pytest.raises(StaleError):
        commit(through, loss, rows(2), {"slice": 2}, {"slice": 1})
    assert len(content(direct, loss)) == 6
