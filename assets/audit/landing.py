"""Landing a slice of `audit.logs`."""

from collections.abc import Iterable
from pathlib import Path

from assets.audit.schema import EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS
from assets.audit.transform import parse_records
from assets.slices.landing import Landed, Target, land_slice
from core.eventlog.api import Record, Slice
from core.lake import Lake

AUDIT = Target(EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS, parse_records)


def land(lake: Lake, index_folder: Path, slice_: Slice, batches: Iterable[list[Record]]) -> Landed:
    """Land a slice exactly once; see `assets.slices.landing.land_slice`."""
    return land_slice(lake, AUDIT, index_folder, slice_, batches)
