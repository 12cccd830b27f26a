"""What a producer says it sent, held against what landed. Pure: the same rows give the same verdict."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.usage.schema import EVENTS_SCHEMA
from assets.usage.transform import COUNTED
from core.contracts.usage import identities_hash

COMPLETE, INCOMPLETE, DIFFERENT = "complete", "incomplete", "different"
MOST_RANGES = 1000
"""Ranges of numbers that are named; how many numbers are missing is said in full."""
COLUMNS = ("slice", "partition", "offset", "sequence", "identity", "fate")
ROWS = {name: EVENTS_SCHEMA[name] for name in COLUMNS}

Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Claim:
    """A checkpoint: all numbers from `first` to `last` were sent, once each, as events of these identities."""

    first: int
    last: int
    hash: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`missing` did not land. Of `doubled` several events with different ids count. `repeated` came again
    and were counted once: harmless, and what an at-least-once sender does after a restart."""

    state: str
    missing: Ranges
    doubled: Ranges
    repeated: Ranges
    missing_events: int


def judge(claim: Claim, rows: pl.DataFrame, voided: pl.DataFrame) -> Verdict:
    """Hold a claim against the landed rows of its producer and incarnation.

    Args:
        rows: columns `COLUMNS`, of any range.
        voided: slice, partition, offset of rows that a void took out: they count no more, but did land.
    """
    place = ["slice", "partition", "offset"]
    within = rows.filter(pl.col("sequence").is_between(claim.first, claim.last))
    each = within.group_by("sequence").agg(records=pl.len(), identities=pl.col("identity").n_unique())
    counted = within.filter(pl.col("fate") == COUNTED).join(voided, on=place, how="anti")
    counting = counted.group_by("sequence").agg(pl.col("identity").n_unique()).sort("sequence")
    doubled = counting.filter(pl.col("identity") > 1)["sequence"].to_numpy()
    landed = each["sequence"].sort().to_numpy()
    missing = _gaps(landed, claim.first, claim.last)
    state = INCOMPLETE if missing or len(doubled) else COMPLETE
    if state == COMPLETE and _hash(within, counted) != claim.hash:
        state = DIFFERENT
    repeated = each.filter(pl.col("records") > pl.col("identities"))["sequence"].sort().to_numpy()
    return Verdict(
        state,
        missing[:MOST_RANGES],
        ranges(doubled)[:MOST_RANGES],
        ranges(repeated)[:MOST_RANGES],
        claim.last - claim.first + 1 - len(landed),
    )


def ranges(numbers: npt.NDArray[np.int64]) -> Ranges:
    """Ascending numbers as ranges without gaps, both ends included."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) > 1)
    firsts, lasts = np.append(numbers[0], numbers[breaks + 1]), np.append(numbers[breaks], numbers[-1])
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def ranges_json(found: Sequence[tuple[int, int]]) -> str:
    return json.dumps([list(each) for each in found])


def _gaps(landed: npt.NDArray[Any], first: int, last: int) -> Ranges:
    """Between numbers that landed, ascending and within [first, last]."""
    edges = np.concatenate([[first - 1], landed, [last + 1]])
    at = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[each]) + 1, int(edges[each + 1]) - 1) for each in at]


def _hash(within: pl.DataFrame, counted: pl.DataFrame) -> str:
    """Over one identity a number: the one that counts, or the first that landed where none does."""
    first = within.sort("slice", "partition", "offset").group_by("sequence").agg(pl.col("identity").first())
    chosen = counted.group_by("sequence").agg(counting=pl.col("identity").first())
    identities = first.join(chosen, on="sequence", how="left").sort("sequence")
    return identities_hash(identities.select(pl.coalesce("counting", "identity")).to_series())
