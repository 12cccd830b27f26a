"""Sums and rows read back from the landed records, against the rows themselves."""

import random
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assets.slices.index import IdentityIndex
from assets.slices.landing import catch_up
from assets.usage import facts
from assets.usage.facts import Wanted
from assets.usage.landing import USAGE, land
from assets.usage.rollup import roll_up
from assets.usage.schema import EVENTS, ORDERS
from core.contracts.usage import Reference, UsageData, UsageEvent, VoidEvent
from core.lake import Lake
from core.lake.maintenance import compact
from tests.assets.usage.lake import NOW, local_lake, records, slice_of

METER = "llm.tokens.input"


def _event(number: int, pick: random.Random) -> UsageEvent:
    return UsageEvent(
        id=f"e{number}", source="s", time=NOW - timedelta(minutes=pick.randrange(60_000)), tenant=pick.choice(["org_a", "org_b"]),
        type="headrace.usage.v1", specversion="1.0", data=UsageData(METER, str(pick.randrange(1, 99)), {"model": pick.choice("xyz")}),
    )  # fmt: skip


@pytest.fixture(params=[None, 4, 6], ids=["as landed", "four together", "all together"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    """Six slices of two organisations, with repetitions and voids; the first ones put together, or none."""
    pick, found, start, sent = random.Random(5), local_lake(tmp_path), 0, list[UsageEvent]()
    for number in range(1, 7):
        values = []
        for _ in range(60):
            event = _event(len(sent), pick)
            sent.append(event)
            values.append(event.encode())
            if pick.random() < 0.1:
                values.append(pick.choice(sent).encode())
            if pick.random() < 0.1:
                values.append(
                    VoidEvent(
                        id=f"v{len(values)}", source="v", time=NOW, tenant=event.tenant, type="headrace.usage.void.v1",
                        specversion="1.0", data=Reference(event.source, event.id),
                    ).encode()
                )  # fmt: skip
        batch = records(values, start=start)
        start += len(batch)
        land(found, tmp_path / "index", slice_of(batch), [batch])
        roll_up(found)
        if number == request.param:
            assert compact(found, EVENTS, order=ORDERS[EVENTS]).removed == number
    return found


def rows(lake: Lake, last: int) -> list[dict[str, Any]]:
    handle = lake.open(EVENTS)
    assert handle is not None
    wanted = (pl.col("fate") == "counted") & (pl.col("tenant") == "org_a") & (pl.col("slice") <= last)
    return (
        pl.DataFrame(handle.to_pyarrow_table()).filter(wanted).sort("slice", "partition", "offset").to_dicts()
    )


@pytest.mark.parametrize("last", [1, 4, 6])
def test_pieces_are_the_sums_of_the_rows_between_edges(lake: Lake, last: int) -> None:
    edge = datetime(2026, 5, 10, 6, tzinfo=UTC)
    found = facts.pieces(lake, Wanted("org_a", last, meter=METER), [edge])
    expected: dict[tuple[str, bool, int], tuple[Decimal, int]] = {}
    for row in rows(lake, last):
        key = (row["dimensions"], row["event_time"] >= edge, row["event_time"].month)
        quantity, events = expected.get(key, (Decimal(0), 0))
        expected[key] = quantity + row["quantity"], events + (-1 if row["kind"] == "void" else 1)
    assert {
        (row["dimensions"], row["first"] >= edge, row["first"].month): (row["quantity"], row["events"])
        for row in found.iter_rows(named=True)
    } == expected


def test_pages_are_all_rows_of_the_selections_once_and_in_their_order(lake: Lake) -> None:
    since, until = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 20, tzinfo=UTC)
    chosen = facts.selections([('{"model":"x"}', since, until), ('{"model":"y"}', until, NOW)])
    expected = [
        (row["slice"], row["partition"], row["offset"])
        for row in rows(lake, 5)
        if row["slice"] > 1
        and (
            (row["dimensions"] == '{"model":"x"}' and since <= row["event_time"] < until)
            or (row["dimensions"] == '{"model":"y"}' and until <= row["event_time"] < NOW)
        )
    ]
    found, after = list[tuple[int, int, int]](), None
    while True:
        page = facts.page(lake, Wanted("org_a", 5, 1, METER), chosen, after=after, limit=7)
        found += page.select("slice", "partition", "offset").rows()
        if len(page) < 7:
            break
        after = found[-1]
    assert found == expected
    assert len(expected) > 14


def test_an_event_is_found_with_the_index_without_it_and_with_one_that_is_behind(
    lake: Lake, tmp_path: Path
) -> None:
    every = {row["event_id"]: row for row in rows(lake, 6) if row["kind"] == "usage"}
    voided = {row["ref_offset"] for row in rows(lake, 6) if row["kind"] == "void"}
    behind, handle = tmp_path / "behind", lake.open(EVENTS)
    assert handle is not None
    index = IdentityIndex(behind, str(handle.metadata().id))
    with index.locked():
        catch_up(lake, USAGE, handle, index, 3)
    damaged = shutil.copytree(tmp_path / "index", tmp_path / "damaged")
    damaged.joinpath("entries.bin").write_bytes(bytes((damaged / "entries.bin").stat().st_size))
    for folder in (tmp_path / "index", tmp_path / "none", behind, damaged):
        for event_id in random.Random(1).sample(sorted(every), 12):
            found = facts.find(lake, folder, "org_a", "s", event_id)
            assert found is not None
            assert found.row["offset"] == every[event_id]["offset"]
            assert (found.voided_by is not None) == (every[event_id]["offset"] in voided)
            assert facts.find(lake, folder, "org_b", "s", event_id) is None
    assert facts.find(lake, tmp_path / "index", "org_a", "other", "e1") is None


def test_fates_are_counted_by_the_time_of_the_event(lake: Lake) -> None:
    since, until = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    found = facts.fates(lake, "org_a", 6, since, until)
    counted = {(row["fate"], row["kind"]): row["records"] for row in found.iter_rows(named=True)}
    for kind in ("usage", "void"):
        expected = [
            row for row in rows(lake, 6) if row["kind"] == kind and since <= row["event_time"] < until
        ]
        assert counted["counted", kind] == len(expected) > 0
    assert counted["duplicate", "usage"] > 0
