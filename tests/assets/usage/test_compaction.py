"""Compaction takes nothing for true that is not as it was recorded, and one broken file stops nothing else."""

import io
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from pydantic import SecretStr

from assets.resources import Platform
from assets.usage import schema
from assets.usage.compaction import compact_events
from assets.usage.objects import recorded
from assets.usage.progress import scrub_is_due
from assets.usage.scrub import broken, scrub
from core.lake.maintenance import Compacted, small_files
from core.lake.objects import content, named
from pipelines import maintenance
from tests.assets.usage.site import Site
from tests.assets.usage.test_purge import fill, go

MUCH = 1 << 30


def twice(data: bytes) -> bytes:
    """A file that reads as well as before, with other quantities."""
    changed, out = pl.read_parquet(io.BytesIO(data)), io.BytesIO()
    changed.with_columns(pl.col("quantity") * 2).write_parquet(out)
    return out.getvalue()


def paths(site: Site) -> set[str]:
    handle = site.lake().open(schema.EVENTS)
    assert handle is not None
    return set(named(handle))


@pytest.mark.parametrize("what", ["changed", "lost"])
def test_a_broken_object_is_named_for_ever_whatever_is_compacted(site: Site, what: str) -> None:
    """The topic has nothing left of it: what a compaction wrote of it would be the only truth."""
    fill(site, slices=5)
    assert go(site).lows
    third = recorded(site.lake(), site.database)[2]
    whole = content(site.lake(), schema.EVENTS, third.path)
    if what == "changed":
        site.damage(third.path, twice)
    else:
        site.lose(third.path)
    assert compact_events(site.lake(), site.database) == Compacted(4, 2, (third.path,))
    assert len(paths(site)) == 3
    assert third.path in paths(site)
    assert scrub_is_due(site.database), "it is noted at once, not when the scrub comes to it"
    for _ in range(2):
        (problem,) = scrub(site.objects, site.database, most_bytes=MUCH).problems
        assert problem.startswith(f"object usage_events/{third.path} (")
        assert f"is {what}" in problem
        assert broken(site.database) == [problem]
        assert compact_events(site.lake(), site.database).added == 0
    site.put(third.path, whole)
    assert scrub(site.objects, site.database, most_bytes=MUCH).problems == []
    assert compact_events(site.lake(), site.database) == Compacted(3, 1)
    assert broken(site.database) == []


@pytest.fixture
def keep(
    local_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], dg.ExecuteInProcessResult]:
    """The job as Dagster runs it, where two small files of a table are too many."""
    monkeypatch.setenv("HEADRACE_OBJECTS_URL", local_site.objects.objects_url)
    for name, value in local_site.database:
        if value is not None:
            said = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            monkeypatch.setenv(f"HEADRACE_{name.upper()}", said)
    monkeypatch.setattr(maintenance, "MOST_SMALL_FILES", dict.fromkeys(maintenance.MOST_SMALL_FILES, 1))
    return lambda: maintenance.lake_maintenance.execute_in_process(
        resources={"platform": Platform()}, raise_on_error=False
    )


def test_a_lost_object_stops_no_table(
    local_site: Site, keep: Callable[[], dg.ExecuteInProcessResult]
) -> None:
    fill(local_site, slices=3)
    local_site.lose(recorded(local_site.lake(), local_site.database)[0].path)
    assert keep().success
    assert [small(local_site, table) for table in (schema.EVENTS, schema.DAILY)] == [2, 1]
    (problem,) = broken(local_site.database)
    assert "is lost" in problem


def test_a_table_that_cannot_be_compacted_is_named_and_the_others_are(
    local_site: Site, keep: Callable[[], dg.ExecuteInProcessResult]
) -> None:
    fill(local_site, slices=3)
    handle = local_site.lake().open(schema.HOURLY)
    assert handle is not None
    Path(handle.file_uris()[0]).unlink()
    done = keep()
    assert not done.success
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    assert str(failure.step_failure_data.user_failure_data.description).startswith("usage_hourly: ")  # type: ignore[union-attr]
    assert [small(local_site, table) for table in (schema.EVENTS, schema.DAILY)] == [1, 1]


def small(site: Site, table: str) -> int:
    handle = site.lake().open(table)
    assert handle is not None
    return small_files(handle)
