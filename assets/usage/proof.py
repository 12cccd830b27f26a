"""The second proof of landed slices: from the bytes of their objects alone, the same roll-up again.

Three things are shown of the objects that were read back: each is what was recorded when it was written;
each row says what its own hashes say; and rolled up anew the rows give, cell by cell and fate by fate, the
hash of what `usage_hourly` holds, without a hole in the offsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from assets.slices.losses import losses, with_lost
from assets.usage import schema
from assets.usage.folding import fold
from assets.usage.objects import ObjectProblemError, Recorded, checked, rows
from assets.usage.reading import contents
from assets.usage.rollup import hourly_partials
from core.content import digest
from core.ids import identity
from core.lake import Lake
from core.lake.objects import named
from core.lake.read import read
from core.topology import TOPICS

KINDS = {schema.CELL: schema.CELL_COLUMNS, schema.FATE: schema.FATE_COLUMNS}
NOT_READ_BACK = "raw"
"""Large where it is filled, and part of no sum."""


@dataclass(slots=True)
class Proof:
    """Of slices `first` to `last`, widened to whole folded blocks. It holds where nothing is wrong."""

    first: int
    last: int
    objects: list[Recorded]
    rollup: str = ""
    """Hash of cells and fates of these slices, from the objects; the same from `usage_hourly`."""
    ranges: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """(topic id, partition) to the offsets [first, end) that were seen, without a hole."""
    broken: list[ObjectProblemError] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.broken and not self.problems


def prove(lake: Lake, known: Sequence[Recorded], first: int, last: int) -> Proof:
    """Read every object with rows of these slices and compare.

    Args:
        known: the objects of `usage_events` as they were recorded, all that the table names.

    Returns:
        With `broken` or `problems` where it does not hold; nothing is raised for what is found.
    """
    first, last = whole_blocks(lake, first, last)
    chosen = [each for each in known if each.first_slice <= last and each.last_slice >= first]
    proof = Proof(first, last, chosen)
    handle = lake.open(schema.EVENTS)
    now = {} if handle is None else named(handle)
    columns = [name for name in schema.EVENTS_SCHEMA if name != NOT_READ_BACK]
    parts: dict[str, list[pl.DataFrame]] = {kind: [] for kind in KINDS}
    spans: list[pl.DataFrame] = []
    for each in chosen:
        try:
            frame = rows(checked(lake, each, now), columns)
        except ObjectProblemError as error:
            proof.broken.append(error)
            continue
        if len(frame) != each.records:
            proof.broken.append(ObjectProblemError(each, "changed", f"{len(frame)} rows are in it"))
            continue
        proof.problems += _hashes_that_differ(frame, each)
        frame = frame.filter(pl.col("slice").is_between(first, last))
        partials = hourly_partials(frame)
        for kind, names in KINDS.items():
            parts[kind].append(fold(partials.filter(pl.col("kind") == kind).select(names)))
        spans.append(
            frame.group_by("topic_id", "partition").agg(
                first=pl.col("offset").min(), end=pl.col("offset").max() + 1, rows=pl.len(),
            )
        )  # fmt: skip
    if not proof.broken:
        _compare(lake, proof, parts)
        _measure(handle, proof, spans)
    return proof


def whole_blocks(lake: Lake, first: int, last: int) -> tuple[int, int]:
    """The smallest range of slices around [first, last] whose partials stand for no other slice."""
    handle = lake.open(schema.HOURLY)
    if handle is None:
        return first, last
    columns = {name: schema.HOURLY_SCHEMA[name] for name in ("since", "slice")}
    touched = read(
        lake, schema.HOURLY, handle, columns,
        where=(pl.col("since") <= last) & (pl.col("slice") >= first),
        within=("slice", first, last + schema.BLOCKS[-1]), part={"kind": schema.FATE},
    )  # fmt: skip
    return min([first, *touched["since"]]), max([last, *touched["slice"]])


def _hashes_that_differ(frame: pl.DataFrame, known: Recorded) -> list[str]:
    """Rows of usage that do not say what their identity and content were made of.

    A void bears what another row says; that it does is compared by its own gate.
    """
    readable = frame.filter(pl.col("kind") == schema.USAGE)
    time = readable["event_time"].to_physical().to_numpy()
    names = zip(readable["tenant"], readable["source"], readable["event_id"], strict=True)
    found = pl.Series([identity(*name) for name in names], dtype=pl.Binary)
    same = (found == readable["identity"]) & (pl.Series(contents(readable, time)) == readable["content"])
    wrong = int((~same).sum())
    return [f"{known}: {wrong} rows do not say what their own hashes say"] if wrong else []


def _compare(lake: Lake, proof: Proof, parts: dict[str, list[pl.DataFrame]]) -> None:
    handle = lake.open(schema.HOURLY)
    again, held = [], []
    for kind, names in KINDS.items():
        if parts[kind]:
            folded = fold(pl.concat(parts[kind]))
            again += [(kind, *row) for row in folded.select(sorted(folded.columns)).iter_rows()]
        if handle is None:
            continue
        stored = fold(
            read(
                lake, schema.HOURLY, handle, {name: schema.HOURLY_SCHEMA[name] for name in names},
                where=pl.col("slice").is_between(proof.first, proof.last),
                within=("slice", proof.first, proof.last), part={"kind": kind},
            )
        )  # fmt: skip
        held += [(kind, *row) for row in stored.select(sorted(stored.columns)).iter_rows()]
    proof.rollup = digest(again)
    if proof.rollup != digest(held):
        proof.problems.append(
            f"slices {proof.first} to {proof.last}: rolled up from their objects they give {proof.rollup}, "
            f"usage_hourly holds {digest(held)}"
        )


def _measure(handle: Any, proof: Proof, spans: Sequence[pl.DataFrame]) -> None:
    """Offsets of a partition are dense over the objects together, but for what was lost before it landed."""
    if not spans:
        return
    whole = (
        pl.concat(spans)
        .group_by("topic_id", "partition")
        .agg(first_offset=pl.col("first").min(), end_offset=pl.col("end").max(), rows=pl.col("rows").sum())
        .sort("topic_id", "partition")
    )
    topics, partitions = whole["topic_id"].unique(), TOPICS[schema.TOPIC].partitions
    known = [loss for topic_id in topics for loss in losses(handle, topic_id, partitions)]
    for topic_id, partition, first, end, count, lost in with_lost(whole, known).iter_rows():
        proof.ranges[topic_id, partition] = first, end
        if end - first - lost != count:
            proof.problems.append(
                f"topic id {topic_id}, partition {partition}: offsets {first} to {end - 1} hold {count} rows"
            )
