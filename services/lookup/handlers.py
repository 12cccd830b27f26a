"""From questions to reads of the lake. The only module of the services that imports the data stack."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from assets.usage import facts
from assets.usage.facts import Found, Wanted
from assets.usage.generation import index_folder, usage_lake
from core.contracts.lookup import (
    Counted,
    Event,
    Fate,
    Fates,
    Listed,
    Piece,
    Place,
    Record,
    Row,
    Rows,
    Summed,
    Sums,
)
from core.lake import Lake
from core.settings import DatabaseSettings, ObjectSettings
from services.common.errors import unavailable
from services.lookup.lakes import Lakes
from services.lookup.turns import Turns

T = TypeVar("T")


class Lookup:
    """The questions of one request. Reads in threads, with a lake that is no one else's meanwhile.

    Args:
        lakes: of the process.
        turns: of the process.
        has_left: whether nobody waits for the answer any more.
    """

    def __init__(
        self, lakes: Lakes[Lake], state: Path, turns: Turns, has_left: Callable[[], Awaitable[bool]]
    ) -> None:
        self._lakes, self._state = lakes, state
        self._turns, self._has_left = turns, has_left

    async def sums(self, asked: Sums) -> Summed:
        """Raises: Problem 503 (`unavailable`, `lookup_busy`)."""
        wanted = Wanted(asked.tenant, asked.slice, meter=asked.meter, since=asked.since, until=asked.until)
        found = await self._read(asked.generation, lambda lake: facts.pieces(lake, wanted, asked.edges))
        return Summed([
            Piece(row["meter"], json.loads(row["dimensions"]), f"{row['quantity']:f}", row["events"],
                  row["first"], row["last"], row["element"] or "")
            for row in found.iter_rows(named=True)
        ])  # fmt: skip

    async def rows(self, asked: Rows) -> Listed:
        """Raises: Problem 503 (`unavailable`, `lookup_busy`)."""
        wanted = Wanted(asked.tenant, asked.slice, asked.behind, asked.meter)
        selections = facts.selections((one.dimensions, one.since, one.until) for one in asked.selections)
        found = await self._read(
            asked.generation,
            lambda lake: facts.page(lake, wanted, selections, after=asked.after, limit=asked.limit),
        )
        return Listed([_row(row, asked.generation) for row in found.iter_rows(named=True)])

    async def event(self, asked: Event) -> Place:
        """Raises: Problem 503 (`unavailable`, `lookup_busy`)."""
        index = index_folder(self._state, asked.generation)
        return await self._read(
            asked.generation,
            lambda lake: _place(
                lake, facts.find(lake, index, asked.tenant, asked.source, asked.id), asked.tenant
            ),
        )

    async def record(self, asked: Record) -> Place:
        """Raises: Problem 503 (`unavailable`, `lookup_busy`)."""
        index = index_folder(self._state, asked.generation)

        def work(lake: Lake) -> Place:
            found = facts.at(lake, index, asked.topic_id, asked.partition, asked.offset)
            lost = found is None and facts.is_lost(lake, asked.topic_id, asked.partition, asked.offset)
            return _place(lake, found, asked.tenant, lost=lost)

        return await self._read(asked.generation, work)

    async def fates(self, asked: Fates) -> Counted:
        """Raises: Problem 503 (`unavailable`, `lookup_busy`)."""
        found = await self._read(
            asked.generation,
            lambda lake: facts.fates(lake, asked.tenant, asked.slice, asked.since, asked.until),
        )
        return Counted([Fate(**row) for row in found.iter_rows(named=True)])

    async def _read(self, generation: int, work: Callable[[Lake], T]) -> T:
        async with self._turns.one(self._has_left):
            try:
                with self._lakes.one(generation) as lake:
                    return await asyncio.to_thread(work, lake)
            except OSError:
                raise unavailable("The lake") from None


def lakes(objects: ObjectSettings, database: DatabaseSettings) -> Lakes[Lake]:
    """Those of the process."""
    return Lakes(partial(usage_lake, objects, database))


async def check(objects: ObjectSettings, database: DatabaseSettings) -> None:
    """Raises where the database does not answer."""
    await asyncio.to_thread(usage_lake, objects, database)


def _place(lake: Lake, found: Found | None, tenant: str, *, lost: bool = False) -> Place:
    """What belongs to another tenant is as if it were not there."""
    landed = facts.landed(lake)
    if found is None or found.row["tenant"] != tenant:
        return Place(landed, lost=lost)

    def shown(row: dict[str, Any] | None) -> Row | None:
        return None if row is None else _row(row, lake.generation)

    return Place(landed, shown(found.row), shown(found.voided_by), shown(found.winner), shown(found.voids))


def _row(row: Mapping[str, Any], generation: int) -> Row:
    return Row(
        topic_id=row["topic_id"], partition=row["partition"], offset=row["offset"], slice=row["slice"],
        generation=generation, object=row[facts.OBJECT], received=row["received"], tenant=row["tenant"],
        source=row["source"], id=row["event_id"], kind=row["kind"], time=row["event_time"], meter=row["meter"],
        quantity=None if row["quantity"] is None else f"{row['quantity']:f}",
        dimensions=None if row["dimensions"] is None else json.loads(row["dimensions"]),
        subject=row["subject"], fate=row["fate"], code=row["code"],
    )  # fmt: skip
