"""Fates against a dictionary, where many records share an identity or the half of one that is sorted by."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.slices.fates import COUNTED, DUPLICATE, OUTCOME, QUARANTINED, Parsed, Schema, with_fates
from assets.slices.index import IdentityIndex

SCHEMA: Schema = {name: kind for name, kind in OUTCOME.items() if name != "raw"}

Records = list[tuple[int, int, int]]
"""Both halves of an identity, and a content."""


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(*(st.integers(0, 3),) * 3), max_size=40), max_size=4))
def test_the_first_of_an_identity_counts(
    tmp_path_factory: pytest.TempPathFactory, slices: list[Records]
) -> None:
    index, known = IdentityIndex(tmp_path_factory.mktemp("index"), "t"), dict[tuple[int, int], int]()
    with index.locked():
        for number, records in enumerate(slices, 1):
            frame, winners = with_fates(parsed(records), number, "topic", index, SCHEMA)
            expected = [fate(known, *record) for record in records]
            assert frame["fate"].to_list() == expected
            assert len(winners) == expected.count(COUNTED)
            index.add(number, winners)


def fate(known: dict[tuple[int, int], int], high: int, low: int, content: int) -> str:
    if (high, low) not in known:
        known[high, low] = content
        return COUNTED
    return DUPLICATE if known[high, low] == content else QUARANTINED


def parsed(records: Records) -> Parsed:
    high, low, content = np.array(records, np.int64).reshape(-1, 3).T
    yes, rows = np.ones(len(records), bool), np.arange(len(records))
    frame = pl.DataFrame({"code": [None] * len(records)}, schema={"code": pl.String})
    partition, keys = rows.astype(np.int32) * 0, (high.astype(np.uint64), low.astype(np.uint64))
    return Parsed(frame, partition, rows, yes, yes, *keys, content)


def test_nothing_is_left_in_memory(tmp_path: Path) -> None:
    """The next run opens the index anew and knows what this one counted."""
    for number, expected in ((1, COUNTED), (2, DUPLICATE)):
        index = IdentityIndex(tmp_path / "index", "t")
        with index.locked():
            frame, winners = with_fates(parsed([(1, 1, 1)]), number, "topic", index, SCHEMA)
            index.add(number, winners)
        assert frame["fate"].to_list() == [expected]
