"""Landing a slice of `usage.records`."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from assets.slices.landing import IncompleteSliceError, Landed, Target, land_slice
from assets.usage import voids
from assets.usage.imports import Declared, judged, nothing_declared
from assets.usage.reading import parse_records
from assets.usage.schema import EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS
from core.eventlog.api import Record, Slice
from core.lake import Lake

__all__ = ["IncompleteSliceError", "Landed", "land"]

USAGE = Target(EVENTS, EVENTS_SCHEMA, EVENTS_STATISTICS, parse_records, voids.fates)


def land(
    lake: Lake,
    index_folder: Path,
    slice_: Slice,
    batches: Iterable[list[Record]],
    declared: Declared = nothing_declared,
) -> Landed:
    """Land a slice exactly once; see `assets.slices.landing.land_slice`.

    Args:
        declared: finds the imports that its events name.
    """
    target = replace(USAGE, read=lambda records: judged(parse_records(records), declared))
    return land_slice(lake, target, index_folder, slice_, batches)
