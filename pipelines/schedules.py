"""Every clock edge, in one list."""

import dagster as dg

from assets.resources import Platform
from pipelines import jobs
from pipelines.evidence import usage_purge_each_hour, usage_scrub_each_hour
from pipelines.maintenance import lake_maintenance_each_half_hour
from sensors.runs import under_way


@dg.schedule(
    job=jobs.publish_snapshot,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks each minute; a run only where something new is published.",
)
def usage_snapshot_each_minute(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> dg.RunRequest | dg.SkipReason:
    import asyncio  # noqa: PLC0415

    from assets.usage.progress import price_revision, published_version  # noqa: PLC0415
    from core.snapshots import read_pointer  # noqa: PLC0415

    if wait := under_way(context.instance, {"headrace/job": jobs.publish_snapshot.name}):
        return wait
    version = published_version(platform.database)
    pointer = asyncio.run(read_pointer(platform.objects, platform.database))
    shown = None if pointer is None else (pointer.lake_version, pointer.price_revision)
    if version is None or shown == (version, price_revision(platform.database)):
        return dg.SkipReason("nothing new is published")
    return dg.RunRequest()


@dg.schedule(
    job=jobs.knowledge_reconcile,
    cron_schedule="17 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks each hour; a run only where documents are visible or left chunks behind.",
)
def knowledge_reconcile_each_hour(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> dg.RunRequest | dg.SkipReason:
    import asyncio  # noqa: PLC0415

    from assets.knowledge.reconcile import anything  # noqa: PLC0415

    if wait := under_way(context.instance, {"headrace/job": jobs.knowledge_reconcile.name}):
        return wait
    if not asyncio.run(anything(platform.database)):
        return dg.SkipReason("no document is in the index")
    return dg.RunRequest()


@dg.schedule(
    job=jobs.quality_suites,
    cron_schedule="41 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks each hour; a run only where something was published since the last one.",
)
def quality_suites_each_hour(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> dg.RunRequest | dg.SkipReason:
    from assets.usage.progress import price_revision, published_version  # noqa: PLC0415

    if wait := under_way(context.instance, {"headrace/job": jobs.quality_suites.name}):
        return wait
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
