"""Figures of the usage assets: true, and what is lost or invented shows in the asset where it happened."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from assets.slices.landing import Landed
from assets.usage import figures, purge, rollup, schema, snapshot
from assets.usage.figures import Figures
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from core.lake import Lake
from core.settings import DatabaseSettings
from tests.assets.usage.lake import NOW, event, local_lake, records, slice_of
from tests.assets.usage.site import Site
from tests.assets.usage.test_publish import empty

__all__ = ["empty"]


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Half an hour after the log took everything."""
    monkeypatch.setattr(figures, "now", lambda: NOW + timedelta(minutes=30))
    return local_lake(tmp_path)


def landed(lake: Lake, folder: Path, values: list[bytes], start: int = 0) -> Landed:
    batch = records(values, start=start)
    return land(lake, folder / "index", slice_of(batch), [batch])


MIXED = [event(1), event(2), event(3), event(1), event(1, quantity="6"), b"bad"]


@pytest.mark.parametrize("noted", [True, False], ids=["in hand", "read"])
def test_what_a_run_has_in_hand_is_what_the_lake_says(lake: Lake, tmp_path: Path, noted: bool) -> None:
    first, second = landed(lake, tmp_path, MIXED), landed(lake, tmp_path, [event(5)], start=6)
    found = Figures(lake)
    if noted:
        found.note(first)
        found.note(second)
    assert found.of(1, 1, unaccounted=0) == {
        "landed": 6, "counted": 3, "duplicates": 1, "quarantined": 1, "rejected": 1, "unaccounted": 0,
        "lag records": 1, "lag seconds": 1800.0, "freshness seconds": 1800.0,
    }  # fmt: skip
    both = found.of(1, 2, unaccounted=2, waiting=9)
    assert (both["landed"], both["counted"], both["unaccounted"], both["lag records"]) == (7, 4, 2, 9)
    nothing = found.of(None, 2, unaccounted=0)
    assert (nothing["landed"], nothing["lag seconds"], nothing["freshness seconds"]) == (0, 0.0, 1800.0)


def test_an_empty_lake_has_no_freshness_and_a_log_ahead_of_us_no_negative_one(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "freshness seconds" not in Figures(lake).of(None, 0, unaccounted=0)
    landed(lake, tmp_path, MIXED)
    monkeypatch.setattr(figures, "now", lambda: NOW - timedelta(minutes=1))
    found = Figures(lake).of(1, 1, unaccounted=0)
    assert (found["lag seconds"], found["freshness seconds"]) == (0.0, 0.0)


def test_the_age_of_a_slice_is_that_of_its_first_record_its_freshness_that_of_its_newest(
    lake: Lake, tmp_path: Path
) -> None:
    batch = records(MIXED)
    batch = [
        msgspec.structs.replace(each, timestamp_ms=each.timestamp_ms + 60_000 * each.offset) for each in batch
    ]
    done = land(lake, tmp_path / "index", slice_of(batch), [batch])
    read, in_hand = Figures(lake), Figures(lake)
    in_hand.note(done)
    for found in (read, in_hand):
        said = found.of(1, 1, unaccounted=0)
        assert (said["lag seconds"], said["freshness seconds"]) == (1800.0, 1500.0)


def test_a_lost_object_costs_figures_and_not_the_asset(lake: Lake, tmp_path: Path) -> None:
    landed(lake, tmp_path, [event(1)])
    (path,) = Path(lake.uri(schema.EVENTS)).glob("*.parquet")
    path.unlink()
    assert Figures(lake).of(None, 1, unaccounted=0) == {}


def test_a_record_without_a_fate_shows_in_the_hours(lake: Lake, tmp_path: Path) -> None:
    landed(lake, tmp_path, MIXED)
    handle: Any = lake.open(schema.EVENTS)
    handle.update(updates={"fate": "'lost'"}, predicate='"offset" = 1')
    assert roll_up(lake).unaccounted == 1


def test_events_that_are_in_no_day_show_in_the_days(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed(lake, tmp_path, MIXED)
    assert roll_up(lake).unaccounted == 0
    whole = rollup.daily_partials
    monkeypatch.setattr(
        rollup, "daily_partials", lambda rows: whole(rows).filter(pl.col("dimensions") == "{}")
    )
    done = daily(lake)
    assert (done.first, done.slice, done.unaccounted) == (1, 1, 2)


def test_what_is_published_is_counted_from_the_first_slice_of_a_folded_block(
    lake: Lake, tmp_path: Path, empty: DatabaseSettings
) -> None:
    found = []
    for number in range(17):
        landed(lake, tmp_path, [event(number)], start=number)
        roll_up(lake)
        daily(lake)
        done = publish(lake, empty)
        assert done is not None
        found.append((done.first, done.slice, done.booked))
    assert found == [(number, number, 1) for number in range(1, 18)]
    done = publish(lake, empty)
    assert done is not None
    assert (done.first, done.booked) == (None, 0)


def test_what_is_published_again_after_a_fold(local_site: Site) -> None:
    """PostgreSQL put back to slice 15: slice 16 is there only together with those before."""
    for number in range(16):
        local_site.send([event(number)])
        local_site.carry()
    local_site.sql("delete from usage_publication where slice = 16", owner=True)
    done = publish(local_site.lake(), local_site.database)
    assert done is not None
    assert (done.first, done.slice, done.booked) == (1, 16, 16)


def test_a_file_without_some_of_the_days_shows_in_the_snapshot(
    local_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = snapshot.tables

    def without(rows: pl.DataFrame, state: snapshot.Published) -> tuple[dict[str, pl.DataFrame], set[str]]:
        frames, left_out = whole(rows, state)
        return frames | {"usage_daily": frames["usage_daily"].filter(pl.col("dimensions") == "{}")}, left_out

    local_site.send(MIXED)
    local_site.carry()
    monkeypatch.setattr(snapshot, "tables", without)
    monkeypatch.setattr(snapshot, "_put", _not_put)
    done = snapshot.publish_snapshot(local_site.lake(), local_site.database, local_site.objects)
    assert done is not None
    assert done.unaccounted == 2


async def _not_put(*_: Any) -> Any:
    return None


def test_records_that_are_gone_and_never_landed_show_in_the_purge(
    local_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_site.send(MIXED)
    local_site.carry()

    async def beyond(_: Any, __: Any, permits: list[purge.Permit]) -> dict[int, int]:
        return {permit.partition: permit.before + 3 for permit in permits}

    monkeypatch.setattr(purge, "_delete", beyond)
    done = purge.purge(
        local_site.lake(), local_site.eventlog, local_site.database, lag=timedelta(0), most=1_000_000
    )
    assert done.unaccounted == 3
