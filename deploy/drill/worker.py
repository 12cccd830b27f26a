"""A run without Dagster: `python -m deploy.drill.worker MOST [compacts]`, slice after slice, until nothing is left.

From the topic to the purge and the snapshot, as the jobs of `pipelines` do it. Reads the environment like
everybody, says `ready` when it begins and exits with 0 when all is published; it may be killed at any moment
and run beside others.
"""

import random
import sys
from datetime import timedelta
from typing import Final

from deltalake.exceptions import CommitFailedError

from assets.usage.compaction import compact_events
from assets.usage.evidence import evidence
from assets.usage.gate import say
from assets.usage.generation import index_folder, usage_lake
from assets.usage.imports import declared_in
from assets.usage.landing import land
from assets.usage.lineage import SucceededError, check
from assets.usage.objects import record
from assets.usage.progress import next_slice, published_offsets, published_slice
from assets.usage.publish import NotRolledUpError, publish
from assets.usage.purge import purge
from assets.usage.rollup import BehindFoldError, daily, roll_up, rolled_slice
from assets.usage.schema import EVENTS, TOPIC
from assets.usage.snapshot import publish_snapshot
from core.eventlog.api import OffsetOutOfRangeError, TopicChangedError
from core.eventlog.bulk import read_slice
from core.lake.commit import StaleError
from core.lake.maintenance import crowded
from core.settings import DatabaseSettings, DataSettings, EventLogSettings, ObjectSettings
from quality import gates

FASTER: Final = (
    StaleError,
    OffsetOutOfRangeError,
    TopicChangedError,
    NotRolledUpError,
    BehindFoldError,
    CommitFailedError,
    SucceededError,
)
"""What a run ends with when another one was faster; the sensor asks for the next one by itself."""
MOST_SMALL_FILES: Final = 8
"""Of landed events, where a worker compacts: a third of what the platform lets stand, so that a drill is full of it."""
PATIENCE: Final = 50
"""So often in a row another may be faster."""


class GateError(Exception):
    """Conservation does not hold; nothing was published."""


def main() -> int:
    most, compacts = int(sys.argv[1]), sys.argv[2:] == ["compacts"]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    slower = 0
    while True:
        try:
            if not carry(most, compacts=compacts):
                return 0
            slower = 0
        except GateError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        except FASTER as error:
            slower += 1
            sys.stderr.write(f"another was faster: {type(error).__name__}: {error}\n")
            if slower == PATIENCE:
                return 2


def carry(most: int, *, compacts: bool = False) -> bool:
    """One slice from the topic to published cells, the snapshot and the purge; False where nothing was left.

    Raises:
        GateError: what was landed is not what would be published.
    """
    database, eventlog, objects = DatabaseSettings(), EventLogSettings(), ObjectSettings()
    lake = usage_lake(objects, database)
    check(lake, database)
    # Slices are cut elsewhere each time: fates must not depend on it.
    piece = next_slice(lake, eventlog, database, TOPIC, EVENTS, most=random.randint(most // 2, most))  # noqa: S311
    if piece is not None:
        batches = read_slice(eventlog, database, piece, headers=False)
        folder = index_folder(DataSettings().state_dir, lake.generation)
        land(lake, folder, piece, batches, declared_in(database))
        record(lake, database)
    roll_up(lake)
    first, last = published_slice(database) + 1, rolled_slice(lake)
    if first <= last:
        found = evidence(lake, first, last)
        problems = gates.problems(found)
        problems += gates.contiguous(found.conservation, published_offsets(database, lake))
        say(database, lake.generation, first, last, len(problems))
        if problems:
            raise GateError("; ".join(problems))
    daily(lake)
    publish(lake, database)
    publish_snapshot(lake, database, objects)
    if compacts and crowded(lake, {EVENTS: MOST_SMALL_FILES}):
        compact_events(lake, database)
    purge(lake, eventlog, database, lag=timedelta(0), most=10 * most)
    return piece is not None


if __name__ == "__main__":
    sys.exit(main())
