"""Each rule of each gate is red on an input that breaks this rule and no other."""

from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from quality.gates import billed, complete, conservation, contiguous, voided

FATES = ("counted", "duplicates", "quarantined", "rejected")
KINDS = ("counted_voids", "voids", "counted_checkpoints", "checkpoints")


def good() -> pl.DataFrame:
    """Two tenants on one partition, one of them on another too."""
    return pl.DataFrame(
        [
            ("t", 0, "org_a", 5, 10, 18, 8, 0, 3, 1, 1, 0, 2, 2, 1, 1),
            ("t", 0, "org_b", 3, 10, 18, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0),
            ("t", 1, "org_a", 2, 0, 2, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0),
        ],
        schema=[
            "topic_id",
            "partition",
            "tenant",
            "landed",
            "first_offset",
            "end_offset",
            "records",
            "lost",
            *FATES,
            *KINDS,
        ],
        orient="row",
    )


def changed(frame: pl.DataFrame, row: int, **values: Any) -> pl.DataFrame:
    rows = frame.to_dicts()
    rows[row] |= values
    return pl.DataFrame(rows, schema=frame.schema)


def test_what_is_conserved_holds() -> None:
    verdict = conservation(good())
    assert (verdict.holds, verdict.landed, verdict.problems) == (True, 10, [])


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_record_without_a_fate_or_a_fate_without_a_record(fate: str, difference: int) -> None:
    frame = good()
    row = 2 if fate == "rejected" else 0
    verdict = conservation(changed(frame, row, **{fate: frame[fate][row] + difference}))
    assert len(verdict.problems) == 1
    partition = frame["partition"][row]
    assert verdict.problems[0].startswith(f"topic id t, partition {partition}, tenant org_a: ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_void_or_checkpoint_that_is_booked_as_something_else(kind: str, difference: int) -> None:
    frame = good()
    verdict = conservation(changed(frame, 0, **{kind: frame[kind][0] + difference}))
    assert len(verdict.problems) == 1
    assert verdict.problems[0].startswith("topic id t, partition 0, tenant org_a: ")


def test_a_void_takes_out_what_one_event_put_in() -> None:
    names = ("tenant", "meter", "dimensions", "event_time", "quantity")
    right: dict[str, Any] = dict(zip(names, ("org_a", "m", "{}", 5, Decimal(-7)), strict=True))
    original = {f"original_{name}": value for name, value in right.items()} | {
        "original_quantity": Decimal(7)
    }
    row = {"partition": 0, "offset": 3, **right, **original}
    assert voided(pl.DataFrame([row])) == []
    wrong = {"tenant": "org_b", "meter": "n", "dimensions": "[]", "event_time": 6, "quantity": Decimal(8)}
    for name, value in wrong.items():
        [problem] = voided(pl.DataFrame([row | {f"original_{name}": value}]))
        assert problem.startswith("partition 0, offset 3, tenant org_a: the void takes out -7 of m")
    gone = pl.DataFrame([row, row | dict.fromkeys(original)]).slice(1)
    assert len(voided(gone)) == 1


def test_errors_of_two_tenants_do_not_cancel_out() -> None:
    verdict = conservation(changed(changed(good(), 0, counted=2), 1, counted=4))
    assert [problem.split(": ")[0] for problem in verdict.problems] == [
        "topic id t, partition 0, tenant org_a",
        "topic id t, partition 0, tenant org_b",
    ]


@pytest.mark.parametrize("records", [1, 3])
def test_a_partition_with_a_hole_or_a_doubled_record(records: int) -> None:
    verdict = conservation(changed(good(), 2, records=records))
    assert verdict.problems == [f"topic id t, partition 1: offsets 0 to 1 hold {records} records"]


def test_offsets_that_were_accepted_as_lost_are_no_hole() -> None:
    frame = changed(changed(good(), 0, end_offset=20, lost=2), 1, end_offset=20, lost=2)
    assert conservation(frame).problems == []
    frame = changed(changed(frame, 0, lost=1), 1, lost=1)
    assert conservation(frame).problems == ["topic id t, partition 0: offsets 10 to 19 hold 8 records"]


def test_nothing_landed_holds() -> None:
    assert conservation(good().clear()).holds


POSITIONS = {0: 18, 1: 2}


def ranges() -> pl.DataFrame:
    return good().select("topic_id", "partition", "first_offset", "end_offset", "records", "lost").unique()


def test_a_complete_table_holds() -> None:
    assert complete(ranges(), 20, 20, POSITIONS).problems == []


@pytest.mark.parametrize("rows", [19, 21])
def test_a_table_with_other_rows_than_its_positions(rows: int) -> None:
    assert complete(ranges(), rows, 20, POSITIONS).problems == [
        f"the table has {rows} rows, its positions promise 20"
    ]


def test_rows_beyond_the_position() -> None:
    verdict = complete(ranges(), 20, 20, {0: 17, 1: 3})
    assert verdict.problems == ["partition 0: rows reach offset 17, the position is 17"]


def test_newest_slices_with_a_hole() -> None:
    frame = ranges().sort("partition")
    verdict = complete(changed(frame, 0, records=7), 20, 20, POSITIONS)
    assert verdict.problems == ["topic id t, partition 0: offsets 10 to 17 hold 7 records"]


def bill() -> pl.DataFrame:
    return pl.DataFrame(
        [("org_a", "m", 3, Decimal("7.5"), 3, Decimal("7.5")), ("org_b", "m", 1, Decimal(1), 1, Decimal(1))],
        schema=["tenant", "meter", "records", "record_quantity", "events", "quantity"],
        orient="row",
    )


def test_cells_hold_what_was_counted() -> None:
    assert billed(bill()) == []


@pytest.mark.parametrize(
    "change", [{"events": 2}, {"quantity": Decimal("7.6")}, {"records": 4}, {"quantity": Decimal(0)}]
)
def test_cells_that_lack_or_invent_anything(change: dict[str, Any]) -> None:
    (problem,) = billed(changed(bill(), 0, **change))
    assert problem.startswith("tenant org_a, m: ")


@pytest.mark.parametrize(("published", "missing"), [(10, 0), (12, 0), (9, 1), (0, 1)])
def test_a_missing_head_is_seen(published: int, missing: int) -> None:
    """Below what is published may come again, where slices were folded together; a gap may not."""
    assert len(contiguous(good(), {("t", 0): published, ("t", 1): 0})) == missing
