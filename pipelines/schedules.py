"""Every clock edge, in one list."""

import dagster as dg

from assets.resources import Platform
from pipelines import jobs
from pipelines.clock import looks
from pipelines.maintenance import lake_maintenance_each_half_hour


@looks(jobs.publish_snapshot, "* * * * *", "Looks each minute; a run only where something new is published.")
def usage_snapshot_each_minute(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    import asyncio  # noqa: PLC0415

    from assets.usage.progress import price_revision, published_version  # noqa: PLC0415
    from core.snapshots import read_pointer  # noqa: PLC0415

    version = published_version(platform.database)
    pointer = asyncio.run(read_pointer(platform.objects, platform.database))
    shown = None if pointer is None else (pointer.lake_version, pointer.price_revision)
    if version is None or shown == (version, price_revision(platform.database)):
        return dg.SkipReason("nothing new is published")
    return dg.RunRequest()


@looks(
    jobs.purge_usage,
    "53 * * * *",
    "Looks each hour; a run only where records are older than the safety lag and not held.",
)
def usage_purge_each_hour(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    from datetime import timedelta  # noqa: PLC0415

    from assets.usage.purge import is_due  # noqa: PLC0415

    lag = timedelta(hours=platform.usage.usage_purge_lag_hours)
    if not is_due(platform.lake(), platform.eventlog, platform.database, lag=lag):
        return dg.SkipReason("nothing is old enough, or a hold stands")
    return dg.RunRequest()


@looks(
    jobs.scrub_usage,
    "23 * * * *",
    "Looks each hour; a run only where an object was not read for a day, or is known to be broken.",
)
def usage_scrub_each_hour(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    from assets.usage.progress import scrub_is_due  # noqa: PLC0415

    if not scrub_is_due(platform.database):
        return dg.SkipReason("every object was read within a day")
    return dg.RunRequest()


@looks(
    jobs.knowledge_reconcile,
    "17 * * * *",
    "Looks each hour; a run only where documents are visible or left chunks behind.",
)
def knowledge_reconcile_each_hour(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    import asyncio  # noqa: PLC0415

    from assets.knowledge.reconcile import anything  # noqa: PLC0415

    if not asyncio.run(anything(platform.database)):
        return dg.SkipReason("no document is in the index")
    return dg.RunRequest()


@looks(
    jobs.quality_suites,
    "41 * * * *",
    "Looks each hour; a run only where something was published since the last one.",
)
def quality_suites_each_hour(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    from assets.usage.progress import price_revision, published_version  # noqa: PLC0415

    version = published_version(platform.database)
    if version is None:
        return dg.SkipReason("nothing is published yet")
    # A run key is taken once, so what was judged already is not judged again.
    return dg.RunRequest(run_key=f"suites:{version}:{price_revision(platform.database)}")


ALL = [
    usage_snapshot_each_minute,
    usage_purge_each_hour,
    usage_scrub_each_hour,
    lake_maintenance_each_half_hour,
    knowledge_reconcile_each_hour,
    quality_suites_each_hour,
]
