"""The jobs of usage as Dagster runs them: the gate stops what comes after, and every asset says figures that plot."""

import asyncio
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from assets.usage import assets as usage
from assets.usage import schema
from assets.usage.progress import next_slice
from assets.usage.rollup import roll_up
from core.database import Database
from core.invoices.archive import Archive
from core.invoices.issue import Invoices
from core.invoices.issuing import InvoiceError, Outcome
from core.invoices.periods import month
from core.objects import open_objects
from core.snapshots import BUCKET
from pipelines.definitions import defs
from tests.assets.usage.conftest import local_site
from tests.assets.usage.lake import event
from tests.assets.usage.site import Site

__all__ = ["local_site"]

CARRIED = ["usage_events", "usage_hourly", "usage_daily", "usage_cells", "usage_producers"]
"""By one run, in this order."""


FIGURES = {
    "landed": int, "counted": int, "duplicates": int, "quarantined": int, "rejected": int, "unaccounted": int,
    "lag records": int, "lag seconds": float, "freshness seconds": float,
}  # fmt: skip


@pytest.fixture
def site(local_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty installation that the environment names, as a run finds it."""
    for settings in (local_site.database, local_site.eventlog, local_site.objects):
        for name, value in settings:
            if value is not None:
                said = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                monkeypatch.setenv(f"HEADRACE_{name.upper()}", said)
    monkeypatch.setenv("HEADRACE_STATE_DIR", str(local_site.state))
    monkeypatch.setenv("HEADRACE_USAGE_PURGE_LAG_HOURS", "0")
    asyncio.run(_no_snapshots(local_site))
    yield local_site
    asyncio.run(_no_snapshots(local_site))


async def _no_snapshots(site: Site) -> None:
    """The pointer names a file in a folder of this test."""
    async with open_objects(site.objects, site.database) as store:
        await store.ensure_bucket(BUCKET, versioned=False)
        for key in [item.key async for item in store.list(BUCKET)]:
            await store.delete(BUCKET, key)


def run(name: str, config: dict[str, Any] | None = None, *, good: bool = True) -> dg.ExecuteInProcessResult:
    """A job of the code location, whole."""
    done = defs.resolve_job_def(name).execute_in_process(run_config=config, raise_on_error=good)
    assert done.success is good
    return done


def carry(site: Site, *, good: bool = True) -> dg.ExecuteInProcessResult:
    """The next slice, whole."""
    return run("usage_slice", asked_for(site), good=good)


def asked_for(site: Site) -> dict[str, Any]:
    """The next slice as the sensor asks for it; without anything to land what an earlier run left."""
    piece = next_slice(site.lake(), site.eventlog, site.database, schema.TOPIC, schema.EVENTS)
    ranges = {} if piece is None else {str(p): list(both) for p, both in piece.ranges.items()}
    config = {"topic_id": "" if piece is None else piece.topic_id, "ranges": ranges}
    return {"ops": {"usage_events": {"config": config}}}


def made(done: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Assets that were materialised, with the values of their metadata."""
    found = {}
    for each in done.get_asset_materialization_events():
        said = each.step_materialization_data.materialization
        found[said.asset_key.to_user_string()] = {name: item.value for name, item in said.metadata.items()}
    return found


@pytest.mark.parametrize(
    ("kind", "column", "problem"),
    [("fate", "counted", "have a fate"), ("cell", "quantity", "the cells hold")],
)
def test_a_red_conservation_stops_the_run_and_publishes_nothing(
    site: Site, kind: str, column: str, problem: str
) -> None:
    """2, point 9: by the job itself. Nothing follows until the table holds what landed."""
    site.send([event(1), event(2)])
    assert list(made(carry(site))) == CARRIED
    cells, publications = site.cells(), site.sql("select * from usage_publication")
    site.send([event(3), event(3), b"bad"])
    site.land()
    _roll_up_and_tamper(site, kind, column)
    site.send([event(5)])
    for _ in range(2):  # a retry is as red
        done = carry(site, good=False)
        (check,) = done.get_asset_check_evaluations()
        assert (check.check_name, check.passed, check.blocking) == ("conservation", False, True)
        assert problem in (check.description or "")
        assert list(made(done)) == CARRIED[:2]
        assert (site.cells(), site.sql("select * from usage_publication")) == (cells, publications)
        assert site.sql("select generation, first_slice, last_slice, problems > 0 from usage_gate") == [
            (1, 2, 3, True)
        ]
        with pytest.raises(InvoiceError, match="Dagster names what does not") as refused:
            asyncio.run(_close(site))
        assert refused.value.code == "not_conserved"
    # The table made anew from what landed.
    site.lake().drop(schema.HOURLY)
    assert list(made(carry(site))) == CARRIED
    assert site.sql("select slice from usage_publication order by 1") == [(1,), (3,)]
    assert site.sql("select sum(landed), sum(counted) from usage_conservation") == [(6, 4)]
    assert site.sql("select problems from usage_gate") == [(0,)]
    assert asyncio.run(_close(site)).document.status == "draft"


async def _close(site: Site) -> Outcome:
    """What closing a month would issue."""
    app, system = Database(site.database, role="app"), Database(site.database, role="system")
    try:
        async with open_objects(site.objects, site.database) as objects:
            return await Invoices(app, Archive(objects, system)).close(
                "org_a", month("2024-01"), "t", dry_run=True
            )
    finally:
        await app.close()
        await system.close()


def _roll_up_and_tamper(site: Site, kind: str, column: str) -> None:
    lake = site.lake()
    roll_up(lake)
    handle: Any = lake.open(schema.HOURLY)
    handle.update(updates={column: f"{column} + 1"}, predicate=f"kind = '{kind}' and slice = 2")


def test_every_asset_of_usage_says_figures_that_plot(site: Site) -> None:
    """Under the same names, each of one type in all runs: Dagster plots a number only so."""
    said: dict[str, list[dict[str, Any]]] = {}

    def keep(done: dg.ExecuteInProcessResult) -> None:
        for name, metadata in made(done).items():
            said.setdefault(name, []).append(metadata)

    keep(carry(site))  # an empty installation
    site.send([event(1), event(2), event(3), event(1), event(1, quantity="6"), b"bad"])
    asked = asked_for(site)
    site.send([event(5), event(7)])  # after the sensor looked
    keep(run("usage_slice", asked))
    for job in ("publish_snapshot", "purge_usage"):
        keep(run(job))
    keep(carry(site))
    for job in ("publish_snapshot", "purge_usage"):
        keep(run(job))
    keep(carry(site))  # nothing is left
    for job in ("publish_snapshot", "purge_usage"):
        keep(run(job))

    every = [each for each in vars(usage).values() if isinstance(each, dg.AssetsDefinition)]
    assert sorted(said) == sorted(each.key.to_user_string() for each in every)
    for name, runs in said.items():
        empty, first, second, idle = [None] * (4 - len(runs)) + runs
        if empty is not None:
            assert {**empty, "freshness seconds": 0.0}.items() >= _figures().items(), name
            assert "freshness seconds" not in empty, name
        carried = {"landed": 6, "counted": 3, "duplicates": 1, "quarantined": 1, "rejected": 1}
        waiting = 2 if name in {"usage_events", "usage_purge"} else 0
        for found, expected in (
            (first, _figures(**carried, **{"lag records": waiting})),
            (second, _figures(landed=2, counted=2)),
            (idle, _figures()),
        ):
            assert found is not None
            assert {key: type(found[key]) for key in FIGURES} == FIGURES, name
            assert (
                found.items() >= {key: expected[key] for key in expected if "seconds" not in key}.items()
            ), name
            assert (found["lag seconds"] > 0) is (expected["landed"] > 0), name
            assert found["freshness seconds"] > 0, name


def _figures(**changes: int) -> dict[str, int | float]:
    return {name: kind() for name, kind in FIGURES.items()} | changes
