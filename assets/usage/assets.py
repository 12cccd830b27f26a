"""Usage, from the topic to published cells. One run carries a slice all the way.

Heavy libraries are imported inside the functions: the code server loads this module and would keep
them resident (131 MB against 289 MB measured).
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from assets.resources import Platform
from assets.slices.config import SliceConfig

GROUP = "usage"
OWNERS = ["team:data"]
TOPIC = "usage.records"
SILENCE = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=7), warn_window=timedelta(days=1))
"""An installation without any usage for a day is worth a look, for a week more so. How late usage is
while there is some, `headrace doctor` measures at the oldest record that is not published."""

usage_records = dg.AssetSpec(
    key=["topics", "usage_records"],
    description="Topic `usage.records`: metered facts as CloudEvents, from the services' outbox and from producers "
    "that write it directly. Kept 30 days at most; what is proven to have landed goes after one.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"kafka"},
)


@dg.asset(
    deps=[usage_records],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"delta", "polars"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_events(
    context: dg.AssetExecutionContext, config: SliceConfig, platform: Platform
) -> dg.MaterializeResult[Any]:
    """Every record of `usage.records`, good or bad, with its fate: counted, duplicate, quarantined or rejected.

    **Promise.** Data, fates and next offsets are one commit: a record lands exactly once, whatever dies
    when. The first record of an identity (tenant, source, id) is counted, for ever.

    **Red?** *StaleError*: another run landed meanwhile; the next tick goes on. *IncompleteSliceError*,
    *OffsetOutOfRangeError*: the log does not hold what it announced; run `headrace doctor` and read the
    sensor's last tick. *LogUnavailableError*: the log is away; the sensor asks again by itself.
    """
    from assets.usage.generation import index_folder  # noqa: PLC0415
    from assets.usage.imports import declared_in  # noqa: PLC0415
    from assets.usage.landing import land  # noqa: PLC0415
    from assets.usage.objects import record  # noqa: PLC0415
    from assets.usage.progress import landed_slice, not_landed  # noqa: PLC0415
    from assets.usage.transform import FATES  # noqa: PLC0415
    from core.eventlog.bulk import read_slice  # noqa: PLC0415

    if not config.ranges:
        context.log.info("nothing to land; the run finishes what an earlier one left")
        held = platform.figures().of(None, landed_slice(platform.lake()), unaccounted=0)
        return dg.MaterializeResult(metadata={"dagster/row_count": 0, **held})
    piece, ends = config.slice(TOPIC), dict[int, int]()
    batches = read_slice(platform.eventlog, platform.database, piece, headers=False, ends=ends)
    lake, figures = platform.lake(), platform.figures()
    folder = index_folder(platform.state, lake.generation)
    landed = land(lake, folder, piece, batches, declared_in(platform.database))
    record(lake, platform.database)
    figures.note(landed)
    reached = {} if landed.already else {partition: end for partition, (_, end) in piece.ranges.items()}
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": landed.rows,
            "dagster/uri": platform.lake().uri("usage_events"),
            "slice": landed.slice,
            "lake version": landed.version,
            "already landed": landed.already,
            **figures.of(
                None if landed.already else landed.slice,
                landed.slice,
                unaccounted=landed.rows - sum(landed.fates.get(fate, 0) for fate in FATES),
                waiting=not_landed(lake, piece.topic_id, ends, reached),
            ),
        }
    )


@dg.asset(
    deps=[usage_events],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"delta", "polars"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_hourly(platform: Platform) -> dg.MaterializeResult[Any]:
    """Quantities and fates by hour, tenant, meter and dimensions: partial sums of each slice.

    **Promise.** A cell's value is the fold of its partials; rolling up again changes nothing.

    **Red?** The check *conservation* is red: records lost or invented between landing and here. Nothing
    is published until it holds; the check names topic, partition and tenant.
    """
    from assets.usage.rollup import roll_up  # noqa: PLC0415

    done = roll_up(platform.lake())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done.rows,
            "slice": done.slice,
            "lake version": done.version,
            **platform.figures().of(done.first, done.slice, unaccounted=done.unaccounted),
        }
    )


@dg.asset(
    deps=[usage_hourly],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"delta", "polars"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_daily(platform: Platform) -> dg.MaterializeResult[Any]:
    """Quantities by day, tenant, meter and dimensions, folded from `usage_hourly`.

    **Promise.** The same sums as the hours below it.

    **Red?** *StaleError*: another run rolled up meanwhile; the next tick goes on.
    """
    from assets.usage.rollup import daily  # noqa: PLC0415

    done = daily(platform.lake())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done.rows,
            "slice": done.slice,
            "lake version": done.version,
            **platform.figures().of(done.first, done.slice, unaccounted=done.unaccounted),
        }
    )


@dg.asset(
    deps=[usage_daily],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_cells(platform: Platform) -> dg.MaterializeResult[Any]:
    """The published cells in PostgreSQL: what quotas, usage answers and invoices read.

    **Promise.** Absolute values with the lake version they reflect; they only move forward, and cells,
    fates and offsets change in one transaction.

    **Red?** PostgreSQL is away (the run is asked for again), or *NotRolledUpError*: `usage_daily` is
    behind; materialise it, then this.
    """
    from assets.usage.publish import publish  # noqa: PLC0415

    done, figures = publish(platform.lake(), platform.database), platform.figures()
    if done is None:
        return dg.MaterializeResult(metadata={"dagster/row_count": 0, **figures.of(None, 0, unaccounted=0)})
    landed = 0 if done.first is None else figures.carried(done.first, done.slice).landed
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done.cells,
            "slice": done.slice,
            "lake version": done.lake_version,
            **figures.of(done.first, done.slice, unaccounted=landed - done.booked),
            **{f"cells of {meter}": cells for meter, cells in done.meters.items()},
        }
    )


@dg.asset(
    deps=[usage_cells],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_producers(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[Any]:
    """What producers said they had sent, held against what landed: missing and doubled events by their number.

    **Promise.** A checkpoint is judged once everything that was in the topic when it was read has landed,
    so within a minute or two; its verdict follows from the rows alone and changes when a late record comes.
    A restarted producer raises no alarm.

    **Red?** The check *senders_are_complete* names producers whose events are missing: ask them to send
    those numbers again (GET /api/v1/usage/producers, `headrace usage producers`); it mends itself. This
    asset itself is red only when PostgreSQL, the log or the lake is away; the next slice goes on.
    """
    from assets.slices.progress import log_ends  # noqa: PLC0415
    from assets.usage.producers import reconcile  # noqa: PLC0415

    done = reconcile(
        platform.lake(), platform.database, lambda: log_ends(platform.eventlog, platform.database, TOPIC)
    )
    if done.named:
        context.log.warning(f"checkpoints found wanting: {', '.join(done.named[:20])}")
    return dg.MaterializeResult(
        metadata={
            "slice": done.slice,
            **platform.figures().of(done.first, done.slice, unaccounted=done.missing),
            "checkpoints": done.checkpoints,
            "judged": done.judged,
            "found wanting": len(done.named),
            "completed late": done.closed,
            "open findings": done.open,
            "missing events": done.missing,
        }
    )


@dg.asset(
    deps=[usage_cells],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"duckdb"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_snapshot(platform: Platform) -> dg.MaterializeResult[Any]:
    """Usage, prices and charges as a versioned DuckDB file for analysts.

    **Promise.** The file shows exactly what was published at its `lake_version`; every tenant's
    `sum(amount_unrounded)` is all its usage rated as an invoice would, to the last digit (compared in the
    finished file before the pointer moves); a published file never changes.

    **Red?** *SnapshotError*: the file and the rating differ; nothing was published, the message names
    the tenant. Otherwise the object store or PostgreSQL is away; the next minute tries again.
    """
    from assets.usage.progress import published_slice  # noqa: PLC0415
    from assets.usage.snapshot import publish_snapshot  # noqa: PLC0415

    done, figures = publish_snapshot(platform.lake(), platform.database, platform.objects), platform.figures()
    if done is None:
        shown = published_slice(platform.database)
        return dg.MaterializeResult(metadata={"new": False, **figures.of(None, shown, unaccounted=0)})
    pointer, first = done.pointer, done.before + 1 if done.before < done.slice else None
    return dg.MaterializeResult(
        metadata={
            "new": True,
            "name": pointer.name,
            "bytes": pointer.size,
            "lake version": pointer.lake_version,
            **figures.of(first, done.slice, unaccounted=done.unaccounted),
        }
    )


@dg.asset(
    deps=[usage_cells],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"kafka"},
    code_version="1",
    tags={"domain": "usage"},
    freshness_policy=SILENCE,
)
def usage_purge(platform: Platform) -> dg.MaterializeResult[Any]:
    """Takes out of `usage.records` what has landed, once it is proven that the lake has it.

    **Promise.** A record goes only after its objects were read back and are what was recorded of them, after
    their slices rolled up from those bytes alone gave what is billed, a day after they were published
    (`HEADRACE_USAGE_PURGE_LAG_HOURS`), and while no hold stands. Intent and evidence are in `usage_purge`
    before, the log's answer after.

    **Red?** *PurgeRefusedError* names the object, its offsets and tenants: it is lost or changed. Its
    records are still in the topic for 30 days: keep them (`headrace purge hold`), restore the object from a
    backup, and run this again. What landed before it was purged as usual.
    """
    from datetime import timedelta  # noqa: PLC0415

    from assets.usage.progress import landed_slice  # noqa: PLC0415
    from assets.usage.purge import PurgeRefusedError, purge  # noqa: PLC0415

    settings = platform.usage
    done = purge(
        platform.lake(), platform.eventlog, platform.database,
        lag=timedelta(hours=settings.usage_purge_lag_hours), most=settings.usage_purge_records,
    )  # fmt: skip
    if done.plan.refused:
        raise PurgeRefusedError(done.plan.why())
    proof = done.plan.proof
    first, last = (proof.first, proof.last) if proof and done.lows else (None, landed_slice(platform.lake()))
    return dg.MaterializeResult(
        metadata={
            **platform.figures().of(first, last, unaccounted=done.unaccounted, waiting=done.left),
            "records": sum(permit.before - permit.low for permit in done.plan.permits),
            "low watermarks": dg.MetadataValue.json({str(p): low for p, low in done.lows.items()}),
            "holds": sorted({hold for ids in done.plan.held.values() for hold in ids}),
            "objects read back": len(proof.objects) if proof else 0,
            "rollup sha256": proof.rollup if proof else "",
        }
    )
