"""How a clock starts runs: it looks whether there is something to do, and never beside a run of the same job."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import dagster as dg

from assets.resources import Platform
from sensors.runs import under_way

if TYPE_CHECKING:  # what `define_asset_job` returns; not public
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


class Decide(Protocol):
    """Why not, or with what. Import what is heavy inside: the code server would hold it for ever."""

    __name__: str

    def __call__(self, platform: Platform) -> dg.RunRequest | dg.SkipReason: ...


Job: TypeAlias = "dg.JobDefinition | UnresolvedAssetJobDefinition"


def looks(job: Job, cron: str, description: str) -> Callable[[Decide], dg.ScheduleDefinition]:
    """A schedule that runs from the start and bears the name of the function that decides."""

    def made(decide: Decide) -> dg.ScheduleDefinition:
        @dg.schedule(
            name=decide.__name__,
            job=job,
            cron_schedule=cron,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )
        def evaluate(
            context: dg.ScheduleEvaluationContext, platform: Platform
        ) -> dg.RunRequest | dg.SkipReason:
            return under_way(context.instance, {"headrace/job": job.name}) or decide(platform)

        return evaluate

    return made
