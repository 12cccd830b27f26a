"""What every usage asset says of itself in numbers: Dagster plots them, run by run, under the same names everywhere.

Of the slices that a materialisation carried into the asset:

- `landed`, `counted`, `duplicates`, `quarantined`, `rejected`: records, and what became of them;
- `unaccounted`: conservation as the asset itself has it: what went in less what came out; 0 while nothing is lost
  or invented;
- `lag seconds`: how long ago the log took the first of these records; 0 where there were none.

Of the asset as it is now:

- `lag records`: what is there to be carried and is not in it yet;
- `freshness seconds`: how long ago the log took the newest record it holds; absent before there is one.

A plot needs one type a name: the first six and `lag records` are integers, the seconds are not.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from assets.slices.landing import Landed
from assets.slices.progress import last_slice
from assets.usage import schema
from assets.usage.transform import COUNTED, DUPLICATE, QUARANTINED, REJECTED
from core.clock import now
from core.lake import Lake
from core.lake.read import scan
from core.log import Logger

_log = Logger("headrace.usage")

FATES = {"counted": COUNTED, "duplicates": DUPLICATE, "quarantined": QUARANTINED, "rejected": REJECTED}
"""Names of the counts, and the fates they count."""


Number = int | float  # seconds


@dataclass(frozen=True, slots=True)
class Carried:
    """Records of some slices by their fate, and when the log took the first and the newest of them."""

    landed: int
    fates: dict[str, int]
    received: tuple[datetime, datetime] | None


class Figures:
    """Of one run: what landing has in hand is not read again by the assets after it."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._known = dict[tuple[int, int], Carried]()

    def note(self, landed: Landed) -> None:
        """Keep what landing a slice said of it."""
        if landed.received is not None:
            fates = {name: landed.fates.get(fate, 0) for name, fate in FATES.items()}
            self._known[landed.slice, landed.slice] = Carried(landed.rows, fates, landed.received)

    def carried(self, first: int, last: int) -> Carried:
        """Slices [first, last]; of those that no asset of this run asked for before, two columns are read."""
        if (first, last) not in self._known:
            self._known[first, last] = self._read(first, last)
        return self._known[first, last]

    def of(
        self, first: int | None, last: int, *, unaccounted: int, waiting: int | None = None
    ) -> dict[str, Number]:
        """The figures of an asset, as metadata.

        Args:
            first: first of the slices that were carried now, up to `last`; None for none.
            last: last slice the asset holds, 0 for none.
            unaccounted: what went in less what came out.
            waiting: records that are not in the asset yet; those of later slices of `usage_events` where None.

        Returns:
            none where landed records that must be counted for them cannot be read: what the asset has done is done.
        """
        try:
            return self._of(first, last, unaccounted=unaccounted, waiting=waiting)
        except (OSError, pl.exceptions.PolarsError) as error:
            _log.warn("figures of an asset are left out", error=type(error).__name__)
            return {}

    def _of(
        self, first: int | None, last: int, *, unaccounted: int, waiting: int | None
    ) -> dict[str, Number]:
        at, newest = now(), last_slice(self._lake, schema.EVENTS)
        carried = NOTHING if first is None else self.carried(first, last)
        held = self.carried(last, last) if first is None and last else carried
        if waiting is None:
            waiting = self.carried(last + 1, newest).landed if last < newest else 0
        figures: dict[str, Number] = {
            "landed": carried.landed,
            **carried.fates,
            "unaccounted": unaccounted,
            "lag records": waiting,
            "lag seconds": _seconds(carried.received[0] if carried.received else at, at),
        }
        if held.received:
            figures["freshness seconds"] = _seconds(held.received[1], at)
        return figures

    def _read(self, first: int, last: int) -> Carried:
        handle = self._lake.open(schema.EVENTS)
        rows = None if handle is None else scan(
            self._lake, schema.EVENTS, handle, where=pl.col("slice").is_between(first, last),
            within=[("slice", first, last)],
        )  # fmt: skip
        if rows is None:
            return NOTHING
        received = pl.col("received")
        summed = rows.group_by("fate").agg(records=pl.len(), first=received.min(), newest=received.max())
        found = summed.collect(engine="streaming")
        if found.is_empty():
            return NOTHING
        counts = dict(found.select("fate", "records").iter_rows())
        first_and_newest = found.select(pl.col("first").min(), pl.col("newest").max()).row(0)
        return Carried(
            sum(counts.values()),
            {name: counts.get(fate, 0) for name, fate in FATES.items()},
            first_and_newest,
        )


NOTHING = Carried(0, dict.fromkeys(FATES, 0), None)


def _seconds(since: datetime, at: datetime) -> float:  # seconds
    """At least 0: the log's clock is another machine's."""
    return max(timedelta(), at - since).total_seconds()
