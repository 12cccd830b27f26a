"""Clocks of what protects landed facts."""

import dagster as dg

from assets.resources import Platform
from pipelines import jobs
from sensors.runs import under_way


@dg.schedule(
    job=jobs.purge_usage,
    cron_schedule="53 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks each hour; a run only where records are older than the safety lag and not held.",
)
def usage_purge_each_hour(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> dg.RunRequest | dg.SkipReason:
    from datetime import timedelta  # noqa: PLC0415

    from assets.usage.purge import is_due  # noqa: PLC0415

    if wait := under_way(context.instance, {"headrace/job": jobs.purge_usage.name}):
        return wait
    lag = timedelta(hours=platform.usage.usage_purge_lag_hours)
    if not is_due(platform.lake(), platform.eventlog, platform.database, lag=lag):
        return dg.SkipReason("nothing is old enough, or a hold stands")
    return dg.RunRequest()


@dg.schedule(
    job=jobs.scrub_usage,
    cron_schedule="23 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks each hour; a run only where an object was not read for a day, or is known to be broken.",
)
def usage_scrub_each_hour(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> dg.RunRequest | dg.SkipReason:
    from assets.usage.progress import scrub_is_due  # noqa: PLC0415

    if wait := under_way(context.instance, {"headrace/job": jobs.scrub_usage.name}):
        return wait
    if not scrub_is_due(platform.database):
        return dg.SkipReason("every object was read within a day")
    return dg.RunRequest()
