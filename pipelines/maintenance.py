"""Upkeep of the lake: one run for all tables, and only when one has become slow to read."""

import dagster as dg

from assets.resources import Platform
from pipelines.clock import looks

MOST_SMALL_FILES = {"usage_events": 24, "audit_events": 24, "usage_hourly": 256, "usage_daily": 256}
"""Partial sums are folded as they are published, which keeps their files few for tens of thousands of
slices; putting a block together that is still folded would only make the fold rewrite more."""


@dg.op(
    description="Compacts tables with many small files, then deletes files that no version of the last seven days "
    "names. Changes no row; safe beside landing, and to repeat. A file that is lost or changed stays as it is beside its "
    "neighbours; a table that fails is named, and the others are done.",
    pool="lake_rewrite",
)
def compact_and_vacuum(context: dg.OpExecutionContext, platform: Platform) -> None:
    failed = []
    for table in MOST_SMALL_FILES:
        try:
            _keep(context, platform, table)
        except Exception as error:
            # A file that is lost, a log that cannot be read: no reason to let the other tables become slow.
            context.log.exception(f"{table} was not kept")
            failed.append(f"{table}: {type(error).__name__}: {error}")
    if failed:
        raise dg.Failure("; ".join(failed)[:2000])


def _keep(context: dg.OpExecutionContext, platform: Platform, table: str) -> None:
    from assets.usage.compaction import compact_events  # noqa: PLC0415
    from core.lake.maintenance import compact, crowded, vacuum  # noqa: PLC0415

    lake, done = platform.lake(), None
    if crowded(lake, {table: MOST_SMALL_FILES[table]}):
        done = compact_events(lake, platform.database) if table == "usage_events" else compact(lake, table)
        for path in done.broken:
            context.log.warning(
                f"{table}/{path} is lost or changed, and stays; the check objects_intact says more"
            )
    deleted = vacuum(lake, table)
    if done is not None or deleted:
        metadata = {
            "files compacted": done.removed if done else 0,
            "files written": done.added if done else 0,
            "files left, lost or changed": len(done.broken) if done else 0,
            "files deleted": deleted,
        }
        context.log_event(dg.AssetObservation(asset_key=table, metadata=metadata))


@dg.job(
    tags={"headrace/job": "lake_maintenance"}, description="Compaction and vacuum of every table of the lake."
)
def lake_maintenance() -> None:
    compact_and_vacuum()


@looks(
    lake_maintenance,
    "*/30 * * * *",
    "Looks each half hour; a run only where a table has too many small files.",
)
def lake_maintenance_each_half_hour(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    from core.lake.maintenance import crowded  # noqa: PLC0415

    slow = crowded(platform.lake(), MOST_SMALL_FILES)
    if not slow:
        return dg.SkipReason("no table has many small files")
    return dg.RunRequest(tags={"headrace/tables": ",".join(slow)})
