"""Acceptance check 10: what was issued, and what a snapshot showed, computes again from what it names."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from assets.usage.evidence import Evidence
from assets.usage.promotion import begin, build, promote
from quality import gates
from tests.services.lookup.world import CLOSED, DAYS, INVOICES, World
from tests.services.process import REPOSITORY


def verifications(world: World) -> Iterator[Any]:
    for tenant in world.tenants:
        for document in world.documents(tenant):
            yield world.on.call("GET", f"{INVOICES}/{document['id']}/verification", tenant=tenant)


def everything_verifies(world: World) -> int:
    found = list(verifications(world))
    assert [one for one in found if not one["verified"]] == []
    assert all(one["total"] == one["recomputed_total"] for one in found)
    return len(found)


def test_10_issued_documents_compute_to_the_same_cents_after_more_has_landed(world: World) -> None:
    """Invoices, late usage and price fixes; compaction and folding change nothing, nor do tables made anew."""
    before = everything_verifies(world)
    site = world.on.site
    number = begin(site.database, by="test")
    build(site.objects, site.database, site.state, number)
    promote(site.objects, site.database, site.state, number, judge, by="test")
    assert site.lake().generation == number
    assert everything_verifies(world) == before
    posted = [one for each in world.bill("adjustments") for one in each["data"]]
    assert {one["generation"] for one in posted} == {number}, "late usage, of the tables that count now"
    assert everything_verifies(world) == before + len(posted)
    world.land(120, CLOSED, DAYS)  # the tests that follow find late usage that waits
    sys.stdout.write(
        f"{before} documents of {len(world.tenants)} organisations verified, before and after a replay\n"
    )


def judge(found: Evidence) -> list[str]:
    return gates.problems(found)


def test_10_a_snapshot_of_a_slice_has_one_content_whatever_the_workers(world: World) -> None:
    middle = world.on.site.sql("select max(slice) / 2 from usage_publication")[0][0]
    one, many, other = (
        snapshot_of(world, number, workers)
        for number, workers in ((middle, "1"), (middle, "4"), (middle + 1, "4"))
    )
    assert (one[0], many[0]) == ("1", "4"), "workers"
    assert one[1] == many[1]
    assert other[1] != many[1], "another slice is another content"


def snapshot_of(world: World, last: int, workers: str) -> list[str]:
    """Workers and hash, as a process of its own says them."""
    revision = str(world.documents(world.tenants[0])[0]["price_revision"])
    done = subprocess.run(
        [sys.executable, "-m", "tests.services.lookup.snapshot_hash", str(last), revision],
        env={**world.on.environment, "POLARS_MAX_THREADS": workers}, cwd=REPOSITORY, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    return done.stdout.split()


def test_10_a_changed_record_is_found(world: World) -> None:
    """The check is able to fail: quantities of landed rows are others, and their invoice and its line say so."""
    site = world.on.site
    handle: Any = site.lake().open("usage_events")
    path = pl.DataFrame(handle.get_add_actions(flatten=True)).sort("min.slice")["path"][0]
    kept: list[bytes] = []

    def change(data: bytes) -> bytes:
        kept.append(data)
        frame = pl.read_parquet(io.BytesIO(data))
        counted = (pl.col("fate") == "counted") & (pl.col("meter") == "llm.tokens.input")
        # Of the first slice, which the invoices of the month charge; any one row may be voided.
        other = counted & (pl.col("slice") == pl.col("slice").min())
        frame = frame.with_columns(pl.when(other).then(pl.col("quantity") + 1_000_000).otherwise("quantity"))
        out = io.BytesIO()
        frame.write_parquet(out)
        return out.getvalue()

    site.damage(path, change)
    try:
        differing = [one for one in verifications(world) if not one["verified"]]
        assert differing
        assert {one["reason"] for one in differing} == {"differs"}
        # An adjustment that was not needed has no line to compare with.
        line = next(one["line"] for document in differing for one in document["differing"] if one["line"])
        name, _, number = line.rpartition(":")
        tenant = next(
            tenant for tenant in world.tenants if any(one["id"] == name for one in world.documents(tenant))
        )
        traced = world.on.call("GET", f"{INVOICES}/{name}/lines/{number}/events", tenant=tenant)
        assert (traced["proof"]["verified"], traced["proof"]["reason"]) == (False, "differs")
    finally:
        site.damage(path, lambda _: kept[0])
    everything_verifies(world)


def test_a_folder_is_all_it_needs(world: World) -> None:
    """The identity index is a help: without it events are found by their rows."""
    (tenant, source, event_id) = next(iter(world.events))
    params = {"source": source, "id": event_id}
    found = world.on.call("GET", "/api/v1/usage/trace", tenant=tenant, params=params)
    folder = Path(world.on.site.state)
    indexes = [each for each in folder.iterdir() if each.name.startswith("identity-index")]
    assert indexes
    for index in indexes:
        index.rename(folder / f"away-{index.name}")
    try:
        assert world.on.call("GET", "/api/v1/usage/trace", tenant=tenant, params=params) == found
    finally:
        for index in indexes:
            (folder / f"away-{index.name}").rename(index)
