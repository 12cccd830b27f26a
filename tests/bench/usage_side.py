"""Our side of the usage bench, in a process of its own.

    python -m tests.bench.usage_side rollup|commit|backlog BROKERS FOLDER RECORDS

`rollup`: read, parse, dedupe by the identity index on disk, sums by hour. `commit`: the same through both
Delta commits, as a run does it. `backlog`: the whole way to published cells, slice by slice until nothing is
left, in a process that has loaded all definitions as a run has. Prints one line of JSON, like the peers.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from assets.slices.fates import with_fates
from assets.slices.index import IdentityIndex
from assets.slices.progress import share
from assets.usage import landing, rollup, schema
from assets.usage.reading import parse_records
from core.eventlog import open_eventlog
from core.eventlog.api import Slice
from core.eventlog.bulk import read_slice
from core.lake import Lake
from core.lake.read import read
from core.settings import EventLogSettings, ObjectSettings
from tests.bench.broker import NO_DATABASE
from tests.bench.installation import Installation
from tests.bench.stream_peers import answer, measured

MOST = 250_000
"""Records of a slice where sides are compared."""
LARGEST = 300_000
"""What the sensor gives one run at most."""


def slices(settings: EventLogSettings, most: int) -> Iterator[Slice]:
    """The whole topic, in slices as the sensor cuts them."""

    async def look() -> tuple[str, dict[int, tuple[int, int]]]:
        async with open_eventlog(settings, NO_DATABASE) as log:
            bounds = await log.bounds(schema.TOPIC)
            return (await log.topic(schema.TOPIC)).id, {p: (b.low, b.high) for p, b in bounds.items()}

    topic_id, left = asyncio.run(look())
    while waiting := {p: high - low for p, (low, high) in left.items() if high > low}:
        shares = share(waiting, most)
        ranges = {p: (left[p][0], left[p][0] + count) for p, count in shares.items()}
        left |= {p: (end, left[p][1]) for p, (_, end) in ranges.items()}
        yield Slice(schema.TOPIC, topic_id, ranges)


def as_answer(cells: pl.DataFrame) -> dict[str, Any]:
    sums = cells.group_by("hour", "tenant", "meter", "dimensions").agg(pl.col("quantity", "events").sum())
    return answer(
        {
            f"{hour:%Y-%m-%dT%H}|{tenant}|{meter}|{dimensions}": (int(quantity), events)
            for hour, tenant, meter, dimensions, quantity, events in sums.iter_rows()
        }
    )


def roll_up(settings: EventLogSettings, folder: Path) -> dict[str, Any]:
    with measured() as costs:
        index, parts = IdentityIndex(folder / "index", "bench"), []
        with index.locked():
            for number, piece in enumerate(slices(settings, MOST), 1):
                parsed = parse_records(read_slice(settings, NO_DATABASE, piece, headers=False))
                frame, winners = with_fates(parsed, number, piece.topic_id, index, schema.EVENTS_SCHEMA)
                index.add(number, winners)
                parts.append(rollup.hourly_partials(frame))
        cells = pl.concat(parts).filter(pl.col("kind") == schema.CELL)
    return {**costs, **as_answer(cells)}


def commit(settings: EventLogSettings, folder: Path) -> dict[str, Any]:
    with measured() as costs:
        lake = Lake(ObjectSettings(objects_url=f"file://{folder}/objects"))
        for piece in slices(settings, MOST):
            landing.land(
                lake, folder / "index", piece, read_slice(settings, NO_DATABASE, piece, headers=False)
            )
            rollup.roll_up(lake)
    hourly = lake.open(schema.HOURLY)
    assert hourly is not None
    columns = {name: schema.HOURLY_SCHEMA[name] for name in schema.CELL_COLUMNS}
    cells = read(
        lake, schema.HOURLY, hourly, columns, where=pl.col("slice") > 0, within=("slice", 1, 1 << 40),
        part={"kind": schema.CELL},
    )  # fmt: skip
    return {**costs, **as_answer(cells)}


def backlog(settings: EventLogSettings, folder: Path, records: int) -> dict[str, Any]:
    import pipelines.definitions  # noqa: F401, PLC0415 - what a run has in memory

    done, costs, fates = 0, [], dict[str, int]()
    with measured() as found, Installation(folder / "installation", settings) as installation:
        while done < records:
            cost, here = installation.slice(LARGEST)
            costs.append(round(cost.in_process, 2))
            fates = {name: fates.get(name, 0) + here.get(name, 0) for name in {*fates, *here}}
            done += sum(here.values())
            print(f"backlog: {done} records; {cost}", file=sys.stderr, flush=True)
    return {**found, "records": done, "fates": fates, "cpu_seconds_of_slices": costs}


def main() -> None:
    name, brokers, folder, records = sys.argv[1:]
    settings, place = EventLogSettings(eventlog_url=f"kafka://{brokers}"), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if name == "backlog":
        result = backlog(settings, place, int(records))
    else:
        result = {"rollup": roll_up, "commit": commit}[name](settings, place)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
