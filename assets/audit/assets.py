"""Audit, from the topic to the lake. Heavy libraries are imported inside the functions, as in usage."""

from datetime import timedelta
from typing import Any

import dagster as dg

from assets.resources import Platform
from assets.slices.config import SliceConfig

GROUP = "audit"
OWNERS = ["team:security"]
TOPIC = "audit.logs"

audit_logs = dg.AssetSpec(
    key=["topics", "audit_logs"],
    description="Topic `audit.logs`: who did what to what, written in the transaction that did it. Kept 90 days.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"kafka"},
)


@dg.asset(
    deps=[audit_logs],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"delta", "polars"},
    code_version="1",
    tags={"domain": "audit"},
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=timedelta(days=30), warn_window=timedelta(days=7)
    ),
)
def audit_events(
    context: dg.AssetExecutionContext, config: SliceConfig, platform: Platform
) -> dg.MaterializeResult[Any]:
    """Every record of `audit.logs`, good or bad: an event once, its repetitions marked, the unreadable kept raw.

    **Promise.** Data and next offsets are one commit: a record lands exactly once, whatever dies when. The
    first record of an event id is counted; the same id with another content is quarantined, never replaced.

    **Red?** The check *complete* is red: rows are missing or doubled; compare with the topic (kept 90 days)
    before anything else. *StaleError*: another run landed meanwhile; the next tick goes on.
    *IncompleteSliceError*, *OffsetOutOfRangeError*: the log does not hold what it announced; run `headrace
    doctor` and read the sensor's last tick. *LogUnavailableError*: the log is away; the sensor asks again.
    """
    from assets.audit.landing import land  # noqa: PLC0415
    from core.eventlog.bulk import read_slice  # noqa: PLC0415

    if not config.ranges:
        context.log.info("nothing to land")
        return dg.MaterializeResult(metadata={"dagster/row_count": 0})
    piece, lake = config.slice(TOPIC), platform.lake()
    batches = read_slice(platform.eventlog, platform.database, piece, headers=False)
    landed = land(lake, platform.state / "identity-index-audit", piece, batches)
    fates = {name: landed.fates.get(name, 0) for name in ("counted", "duplicate", "quarantined", "rejected")}
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": landed.rows,
            "dagster/uri": lake.uri("audit_events"),
            "slice": landed.slice,
            "lake version": landed.version,
            "already landed": landed.already,
            **fates,
        }
    )
