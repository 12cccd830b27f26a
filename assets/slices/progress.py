"""How far a topic has landed, and what the next slice is. The landed commits are the truth."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.eventlog import open_eventlog
from core.eventlog.api import Bounds, Slice, TopicInfo
from core.lake import Lake
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS

if TYPE_CHECKING:
    import polars as pl
    from deltalake import DeltaTable

SLICE = "slice"
"""Application id of the number of the last landed slice."""
SUCCESSOR = "successor"
"""Application id of the generation that a table was closed in favour of: nothing lands in it any more."""


@dataclass(frozen=True, slots=True)
class Incident:
    """The log is not where landing left it.

    `gap`: offsets [first, end) were deleted before they landed. `recreated`: the topic has another id than
    the one that was landed, `was`. `behind`: the log ends at `first`, landing had reached `end`; it was put
    back to an earlier time.
    """

    kind: Literal["gap", "recreated", "behind"]
    topic: str
    topic_id: str
    partition: int = 0
    first: int = 0
    end: int = 0
    was: str = ""

    @property
    def name(self) -> str:
        """What a person names it by; the same incident has the same name."""
        if self.kind == "recreated":
            return f"recreated:{self.topic}:{self.topic_id}"
        return f"{self.kind}:{self.topic}:{self.topic_id}:{self.partition}:{self.first}-{self.end}"

    def __str__(self) -> str:
        if self.kind == "recreated":
            return (
                f"topic {self.topic} was made anew: it has id {self.topic_id}, the lake was landed from topic id "
                f"{self.was}"
            )
        where = f"topic {self.topic} (id {self.topic_id}), partition {self.partition}"
        if self.kind == "gap":
            return f"{where}: offsets {self.first} to {self.end - 1} are gone before they landed"
        return f"{where}: landed up to {self.end}, the log ends at {self.first}; it was put back to an earlier time"


class IncidentError(Exception):
    """The log is not the one that was landed before, or has lost what was not: a person must look."""

    def __init__(self, incidents: Sequence[Incident]) -> None:
        super().__init__(
            f"{'; '.join(map(str, incidents))}. Nothing was landed. `headrace incident list` shows it and what "
            "to do; records deleted before landing can only come again from their senders"
        )
        self.incidents = tuple(incidents)


def landed_offsets(handle: "DeltaTable | None", topic_id: str, partitions: int) -> dict[int, int]:
    """Next offset of each partition; 0 where nothing has landed."""
    if handle is None:
        return dict.fromkeys(range(partitions), 0)
    return {p: handle.transaction_version(position_name(topic_id, p)) or 0 for p in range(partitions)}


def position_name(topic_id: str, partition: int) -> str:
    """Application id under which a partition's next offset is committed."""
    return f"{topic_id}:{partition}"


def made_from(topic_id: str) -> str:
    """Description of a table that lands this topic: says whose offsets its positions are."""
    return f"landed from topic id {topic_id}"


def landed_from(handle: "DeltaTable") -> str:
    """Id of the topic that a table lands."""
    return (handle.metadata().description or "").removeprefix(made_from(""))


def next_slice(
    lake: Lake,
    eventlog: EventLogSettings,
    database: DatabaseSettings,
    topic: str,
    table: str,
    *,
    most: int = 300_000,
) -> Slice | None:
    """What is to land next: at most `most` records, shared fairly between the partitions.

    Returns:
        None where everything has landed.

    Raises:
        IncidentError: records were deleted before they landed, or the topic was made anew.
    """
    info, bounds = asyncio.run(_look(eventlog, database, topic))
    handle = lake.open(table)
    landed = landed_offsets(handle, info.id, info.partitions)
    if found := _incidents(handle, info, landed, bounds):
        raise IncidentError(found)
    waiting = {p: bounds[p].high - landed[p] for p in sorted(bounds) if bounds[p].high > landed[p]}
    if not waiting:
        return None
    shares = share(waiting, most)
    return Slice(topic, info.id, {p: (landed[p], landed[p] + count) for p, count in shares.items()})


def share(waiting: Mapping[int, int], most: int) -> dict[int, int]:
    """Divide `most` between partitions: small ones get all they need, large ones the rest in equal parts."""
    shares: dict[int, int] = {}
    left = most
    for position, partition in enumerate(sorted(waiting, key=lambda p: (waiting[p], p))):
        shares[partition] = min(waiting[partition], left // (len(waiting) - position))
        left -= shares[partition]
    return {partition: shares[partition] for partition in sorted(shares) if shares[partition]}


def log_ends(
    eventlog: EventLogSettings, database: DatabaseSettings, topic: str
) -> tuple[str, dict[int, int]]:
    """Id of the topic, and the next offset of each partition of the log now."""
    info, bounds = asyncio.run(_look(eventlog, database, topic))
    return info.id, {partition: bound.high for partition, bound in bounds.items()}


async def _look(
    eventlog: EventLogSettings, database: DatabaseSettings, topic: str
) -> tuple[TopicInfo, dict[int, Bounds]]:
    async with open_eventlog(eventlog, database) as log:
        return await log.topic(topic), await log.bounds(topic)


def incidents(
    lake: Lake, eventlog: EventLogSettings, database: DatabaseSettings, topic: str, table: str
) -> list[Incident]:
    """What stops the landing of a topic; empty where nothing does."""
    info, bounds = asyncio.run(_look(eventlog, database, topic))
    handle = lake.open(table)
    return _incidents(handle, info, landed_offsets(handle, info.id, info.partitions), bounds)


def _incidents(
    handle: "DeltaTable | None", info: TopicInfo, landed: Mapping[int, int], bounds: Mapping[int, Bounds]
) -> list[Incident]:
    was = landed_from(handle) if handle is not None else info.id
    if was != info.id:
        return [Incident("recreated", info.name, info.id, was=was)]
    found = []
    for partition, bound in sorted(bounds.items()):
        at = landed[partition]
        if bound.low > at:
            found.append(Incident("gap", info.name, info.id, partition, at, bound.low))
        if bound.high < at:
            found.append(Incident("behind", info.name, info.id, partition, bound.high, at))
    return found


def last_slice(lake: Lake, table: str) -> int:
    """The last slice the table holds, 0 for none."""
    handle = lake.open(table)
    return 0 if handle is None else handle.transaction_version(SLICE) or 0


def landed_ranges(
    lake: Lake, table: str, topic: str, *, newest: int = 16
) -> tuple["pl.DataFrame", int, int, dict[int, int]] | None:
    """What a landed table holds, for its gate; None while it does not exist.

    Returns:
        a frame of the `newest` slices (topic_id, partition, first_offset, end_offset, records, lost), the rows
        of the whole table by its log, the rows its positions promise, and the next offset of each partition.
    """
    import polars as pl  # noqa: PLC0415 - sensors load this module too

    from assets.slices.losses import losses, promised, with_lost  # noqa: PLC0415
    from core.lake.read import read  # noqa: PLC0415

    handle = lake.open(table)
    if handle is None:
        return None
    last = handle.transaction_version(SLICE) or 0
    first = max(1, last - newest + 1)
    columns = {"topic_id": pl.String, "partition": pl.Int32, "offset": pl.Int64}
    where = pl.col("slice").is_between(first, last)
    rows = read(lake, table, handle, columns, where=where, within=("slice", first, last))
    ranges = rows.group_by("topic_id", "partition").agg(
        first_offset=pl.col("offset").min(),
        end_offset=pl.col("offset").max() + 1,
        records=pl.len().cast(pl.Int64),
    )
    whole = int(pl.DataFrame(handle.get_add_actions())["num_records"].sum())
    topic_id, partitions = landed_from(handle), TOPICS[topic].partitions
    return (
        with_lost(ranges.filter(pl.col("topic_id") == topic_id), losses(handle, topic_id, partitions)),
        whole,
        promised(handle, topic_id, partitions),
        landed_offsets(handle, topic_id, partitions),
    )
