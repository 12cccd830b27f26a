"""A void takes an event out of the sums, once, and never one of somebody else."""

import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from assets.slices.runs import WIDTH, sections
from assets.usage.asof import cells_as_of
from assets.usage.evidence import evidence
from assets.usage.folding import fold_full_blocks
from assets.usage.landing import land
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up
from assets.usage.schema import EVENTS, HOURLY, ORDERS
from core.contracts.usage import Reference, VoidEvent
from core.eventlog.api import Record
from core.lake import Lake
from core.lake.maintenance import compact
from core.settings import DatabaseSettings
from quality import gates
from tests.assets.usage.lake import NOW, event, local_lake, records, slice_of
from tests.assets.usage.test_publish import empty, query

__all__ = ["empty"]


def void(number: int, *, tenant: str = "org_a", named: str = "") -> bytes:
    return VoidEvent(
        id=named or f"void {number}", source="corrections", time=NOW, tenant=tenant, type="headrace.usage.void.v1",
        specversion="1.0", data=Reference("s", f"e{number}"),
    ).encode()  # fmt: skip


def put(folder: Path, *batches: list[Record]) -> Lake:
    lake = local_lake(folder)
    land(lake, folder / "index", slice_of(*batches), batches)
    return lake


def rows(lake: Lake, *columns: str) -> list[tuple[Any, ...]]:
    handle = lake.open(EVENTS)
    assert handle is not None
    frame = pl.DataFrame(handle.to_pyarrow_table()).sort("slice", "partition", "offset")
    return list(frame.select(columns).iter_rows())


def sums(lake: Lake) -> list[tuple[Any, ...]]:
    """The fold of hours: hour, quantity, events."""
    handle = lake.open(HOURLY)
    assert handle is not None
    frame = pl.DataFrame(handle.to_pyarrow_table()).filter(pl.col("kind") == "cell")
    folded = frame.group_by(pl.col("hour").dt.hour()).agg(pl.col("quantity", "events").sum())
    return [(hour, quantity, events) for hour, quantity, events in folded.sort("hour").iter_rows()]


def holds(lake: Lake, first: int, last: int) -> list[str]:
    found = evidence(lake, first, last)
    return [
        *gates.conservation(found.conservation).problems,
        *gates.billed(found.billed),
        *gates.voided(found.voids),
    ]


def test_the_original_hour_is_corrected_and_nothing_is_rewritten(tmp_path: Path) -> None:
    put(tmp_path, records([event(1, minutes=-120, quantity="7.5"), event(3, minutes=-120), event(5)]))
    lake = put(
        tmp_path, records([void(1), void(1, named="again"), event(1, minutes=-120, quantity="7.5")], start=3)
    )
    roll_up(lake)
    assert rows(lake, "kind", "fate", "quantity", "ref_slice", "ref_offset", "winner_offset")[3:] == [
        ("void", "counted", Decimal("-7.5"), 1, 0, None),
        ("void", "duplicate", Decimal("-7.5"), 1, 0, 3),
        ("usage", "duplicate", Decimal("7.5"), None, None, 0),
    ]
    assert sums(lake) == [(10, Decimal(5), 1), (12, Decimal(5), 1)]
    assert holds(lake, 1, 2) == []
    assert holds(lake, 2, 2) == []
    fates = evidence(lake, 1, 2).conservation.row(0, named=True)
    assert (fates["landed"], fates["counted"], fates["duplicates"], fates["voids"]) == (6, 4, 2, 1)


def test_a_void_lands_with_its_event_wherever_both_are(tmp_path: Path) -> None:
    """In one slice, behind it, in front of it, in another partition."""
    ours = records([event(1), void(1), void(3), event(3), event(5)])
    theirs = records([void(5), event(7)], partition=2)
    lake = put(tmp_path, ours, theirs)
    roll_up(lake)
    assert {fate for _, fate in rows(lake, "kind", "fate")} == {"counted"}
    assert sums(lake) == [(12, Decimal(5), 1)]
    assert holds(lake, 1, 1) == []


def test_what_never_landed_cannot_be_voided(tmp_path: Path) -> None:
    """Nor what was not counted, nor another tenant's, nor a void."""
    first = records([event(1), event(1, quantity="6"), b"bad", event(3, minutes=6), event(9, tenant="org_b")])
    put(tmp_path, first)
    of_void = VoidEvent(
        id="v", source="s", time=NOW, tenant="org_a", type="headrace.usage.void.v1", specversion="1.0",
        data=Reference("corrections", "void 1"),
    ).encode()  # fmt: skip
    lake = put(
        tmp_path, records([void(1), void(3), void(9), void(11), of_void, void(9, tenant="org_b")], start=5)
    )
    roll_up(lake)
    unknown = ("void", "quarantined", "unknown_reference", None, None)
    assert rows(lake, "kind", "fate", "code", "quantity", "ref_offset")[5:] == [
        ("void", "counted", None, Decimal(-5), 0),
        *[unknown] * 4,
        ("void", "counted", None, Decimal(-5), 4),
    ]
    assert sums(lake) == [(12, Decimal(0), 0)]
    assert holds(lake, 1, 2) == []


def test_a_void_that_came_too_early_is_taken_when_it_is_sent_again(tmp_path: Path) -> None:
    put(tmp_path, records([void(1)]))
    lake = put(tmp_path, records([event(1), void(1), void(1)], start=1))
    assert [fate for (fate,) in rows(lake, "fate")] == ["quarantined", "counted", "counted", "duplicate"]


def test_the_index_is_rebuilt_with_its_voids(tmp_path: Path) -> None:
    put(tmp_path, records([event(1), void(1)]))
    lake = local_lake(tmp_path)
    again = records([void(1), event(1)], start=2)
    land(lake, tmp_path / "other index", slice_of(again), [again])
    assert [fate for (fate,) in rows(lake, "fate")] == ["counted", "counted", "duplicate", "duplicate"]


def test_an_event_that_was_counted_twice_is_voided_where_it_was_first(tmp_path: Path) -> None:
    """A damaged index missed it, and was made anew from the lake. No later void may hold up everybody's landing."""
    put(tmp_path, records([event(1), event(3)]))
    (run,) = (tmp_path / "index").glob("run-*")
    filter_bytes = WIDTH * sections(2)[0]
    run.write_bytes(bytes(filter_bytes) + run.read_bytes()[filter_bytes:])
    put(tmp_path, records([event(1)], start=2))
    shutil.rmtree(tmp_path / "index")
    lake = put(tmp_path, records([void(1)], start=3))
    handle = lake.open(EVENTS)
    assert handle is not None
    found = pl.DataFrame(handle.to_pyarrow_table()).sort("offset")
    assert found["fate"].to_list() == ["counted"] * 4
    assert found.select("ref_slice", "ref_offset").row(-1) == (1, 0)


def test_voids_of_many_slices_after_folding_and_compaction(tmp_path: Path) -> None:
    for number in range(8):
        lake = put(tmp_path, records([event(2 * number + 1, minutes=-60 * number)], start=number))
        roll_up(lake)
        daily(lake)
    compact(lake, EVENTS, order=ORDERS[EVENTS])
    fold_full_blocks(lake, 0, 8, (4, 8))
    lake = put(tmp_path, records([void(2 * number + 1) for number in range(0, 8, 2)], start=8))
    roll_up(lake)
    assert sums(lake) == [(12 - n, Decimal(5 * (n % 2)), n % 2) for n in range(7, -1, -1)]
    assert holds(lake, 9, 9) == []
    # As it was known before, and now.
    assert cells_as_of(lake, 8)["events"].sum() == 8
    assert cells_as_of(lake, 9)["events"].sum() == 4


def test_cells_and_fates_are_published_with_kinds(tmp_path: Path, empty: DatabaseSettings) -> None:
    lake = put(tmp_path, records([event(1, quantity="7"), event(3)]))
    for go in (roll_up, daily):
        go(lake)
    publish(lake, empty)
    lake = put(tmp_path, records([void(1), void(99)], start=2))
    for go in (roll_up, daily):
        go(lake)
    publish(lake, empty)
    assert query(empty, "select grain, quantity, events from usage_cell order by 1") == [
        ("day", Decimal(5), 1),
        ("hour", Decimal(5), 1),
    ]
    assert query(
        empty, "select landed, counted, quarantined, voids, checkpoints from usage_conservation"
    ) == [(4, 3, 1, 1, 0)]
    assert query(
        empty, "select code, kind, source, event_id, version -> 'data' ->> 'id' from usage_quarantine"
    ) == [("unknown_reference", "void", "corrections", "void 99", "e99")]


@pytest.mark.parametrize("broken", ["quantity", "tenant"])
def test_a_void_that_takes_out_something_else_is_found(tmp_path: Path, broken: str) -> None:
    """The control of the gate: rows in the lake that no landing would have written."""
    lake = put(tmp_path, records([event(1), event(9, tenant="org_b")]), records([event(3)], partition=1))
    handle = lake.open(EVENTS)
    assert handle is not None
    lake = put(tmp_path, records([void(1)], start=2))
    roll_up(lake)
    assert holds(lake, 1, 2) == []
    value = {"quantity": "'-4'", "tenant": "'org_c'"}[broken]
    handle = lake.open(EVENTS)
    assert handle is not None
    handle.update(updates={broken: value}, predicate="kind = 'void'")
    assert any("the void takes out" in problem for problem in holds(lake, 1, 2))
