"""Gates: invariants that stop what comes after, in milliseconds. Pure functions over frames."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from assets.usage.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problems` says what does not hold, one line each; empty means it holds."""

    landed: int
    problems: list[str]

    @property
    def holds(self) -> bool:
        return not self.problems


def conservation(frame: pl.DataFrame) -> Verdict:
    """No record vanishes and none is invented (law 4).

    Args:
        frame: `conservation` of `assets.usage.evidence`: topic_id, partition, tenant, landed, first_offset,
            end_offset, records, lost, counted, duplicates, quarantined, rejected, and counted_voids,
            counted_checkpoints beside voids, checkpoints.

    Per topic, partition and tenant: landed = counted + duplicates + quarantined + rejected. Per
    partition: rows = last offset + 1 - first offset - lost, because the log is dense.
    """
    booked = pl.sum_horizontal("counted", "duplicates", "quarantined", "rejected")
    lost = frame.filter(pl.col("landed") != booked).with_columns(booked=booked)
    problems = [
        f"topic id {row['topic_id']}, partition {row['partition']}, tenant {row['tenant']}: "
        f"{row['landed']} landed, {row['booked']} have a fate"
        for row in lost.iter_rows(named=True)
    ]
    differing = frame.filter(
        (pl.col("counted_voids") != pl.col("voids"))
        | (pl.col("counted_checkpoints") != pl.col("checkpoints"))
    )
    problems += [
        f"topic id {row['topic_id']}, partition {row['partition']}, tenant {row['tenant']}: {row['counted_voids']} "
        f"voids and {row['counted_checkpoints']} checkpoints are counted, {row['voids']} and {row['checkpoints']} booked"
        for row in differing.iter_rows(named=True)
    ]
    return Verdict(int(frame["landed"].sum()), problems + _holes(frame))


def problems(found: Evidence) -> list[str]:
    """All that must hold before anything is published, but for where it goes on."""
    return [*conservation(found.conservation).problems, *billed(found.billed), *voided(found.voids)]


def voided(frame: pl.DataFrame) -> list[str]:
    """Every effective void takes out exactly what one counted event of its tenant put in.

    Args:
        frame: `voids` of `assets.usage.evidence`.
    """
    same = pl.all_horizontal(
        pl.col(name).eq_missing(pl.col(f"original_{name}"))
        for name in ("tenant", "meter", "dimensions", "event_time")
    )
    mirrored = (same & (pl.col("quantity") == -pl.col("original_quantity"))).fill_null(value=False)
    return [
        f"partition {row['partition']}, offset {row['offset']}, tenant {row['tenant']}: the void takes out "
        f"{row['quantity']} of {row['meter']}, the event it names put in {row['original_quantity']} of "
        f"{row['original_meter']}"
        for row in frame.filter(~mirrored).iter_rows(named=True)
    ]


def billed(frame: pl.DataFrame) -> list[str]:
    """What is about to be billed is what was counted, less what was voided: as many events and the same quantity.

    Args:
        frame: `billed` of `assets.usage.evidence`: tenant, meter, records, record_quantity, events, quantity.
    """
    differing = frame.filter(
        (pl.col("records") != pl.col("events")) | (pl.col("record_quantity") != pl.col("quantity"))
    )
    return [
        f"tenant {row['tenant']}, {row['meter']}: {row['records']} records of {row['record_quantity']} are counted, "
        f"the cells hold {row['events']} of {row['quantity']}"
        for row in differing.iter_rows(named=True)
    ]


def contiguous(frame: pl.DataFrame, published: Mapping[tuple[str, int], int]) -> list[str]:
    """What is about to be published begins where the published ends: no head is missing.

    Args:
        frame: topic_id, partition, first_offset of what is not published yet.
        published: next offset of each (topic id, partition) that was published.
    """
    begins = (
        frame.group_by("topic_id", "partition")
        .agg(pl.col("first_offset").min())
        .sort("topic_id", "partition")
    )
    return [
        f"topic id {row['topic_id']}, partition {row['partition']}: published up to offset "
        f"{published.get((row['topic_id'], row['partition']), 0)}, what comes next begins at {row['first_offset']}"
        for row in begins.iter_rows(named=True)
        if row["first_offset"] > published.get((row["topic_id"], row["partition"]), 0)
    ]


def complete(frame: pl.DataFrame, rows: int, promised: int, positions: Mapping[int, int]) -> Verdict:
    """Every record that the positions of a landed table promise is there, once.

    Args:
        frame: topic_id, partition, first_offset, end_offset, records, lost of the newest slices.
        rows: of the whole table.
        promised: by its positions, because a topic lands from offset 0 and is dense.
        positions: next offset of each partition.

    The table has as many rows as promised. The newest slices: dense per partition, and none reaches beyond its position.
    """
    problems = _holes(frame)
    if rows != promised:
        problems.append(f"the table has {rows} rows, its positions promise {promised}")
    problems += [
        f"partition {row['partition']}: rows reach offset {row['end_offset'] - 1}, the position is "
        f"{positions.get(row['partition'], 0)}"
        for row in frame.sort("partition").iter_rows(named=True)
        if row["end_offset"] > positions.get(row["partition"], 0)
    ]
    return Verdict(rows, problems)


def chunks_agree(counts: Iterable[tuple[str, int, int]]) -> list[str]:
    """The index holds what the rows say.

    Args:
        counts: version of a document, chunks by its row, chunks in the index.
    """
    return [
        f"{name}: its row says {said} chunks, the index holds {held}"
        for name, said, held in counts
        if said != held
    ]


def quotes_agree(quotes: Iterable[tuple[str, str, str]]) -> list[str]:
    """A passage in the index is its source's text at that place. Quotes nothing: the texts are the tenant's.

    Args:
        quotes: where it stands, what the index holds, what the text holds there.
    """
    return [
        f"{place}: the index holds another text than the source"
        for place, held, source in quotes
        if held != source
    ]


def _holes(frame: pl.DataFrame) -> list[str]:
    """Partitions whose offsets are not dense: rows = last offset + 1 - first offset - lost does not hold."""
    partitions = frame.select(
        "topic_id", "partition", "first_offset", "end_offset", "records", "lost"
    ).unique()
    dense = pl.col("end_offset") - pl.col("first_offset") - pl.col("lost") == pl.col("records")
    holes = partitions.filter(~dense)
    return [
        f"topic id {row['topic_id']}, partition {row['partition']}: offsets {row['first_offset']} to "
        f"{row['end_offset'] - 1} hold {row['records']} records"
        for row in holes.sort("topic_id", "partition").iter_rows(named=True)
    ]
