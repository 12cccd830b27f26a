"""Landing a slice of `usage.records`."""

from collections.abc import Iterable
from pathlib import Path

from assets.slices.landing import IncompleteSliceError, Landed, Target, land_slice
from assets.usage import voids
from assets.usage.reading import parse_records
from assets.usage.schema import EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS
from core.eventlog.api import Record, Slice
from core.lake import Lake

__all__ = ["IncompleteSliceError", "Landed", "land"]

USAGE = Target(EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS, parse_records, voids.fates)


def land(lake: Lake, index_folder: Path, slice_: Slice, batches: Iterable[list[Record]]) -> Landed:
    """Land a slice exactly once; see `assets.slices.landing.land_slice`."""
    return land_slice(lake, USAGE, index_folder, slice_, batches)
