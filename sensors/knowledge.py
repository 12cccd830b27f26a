"""The edge between the work list of documents and Dagster. The rows are the truth, the cursor a cache."""

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import dagster as dg

from assets.knowledge.config import FIRST, written
from assets.resources import Platform
from sensors.runs import under_way

if TYPE_CHECKING:
    from assets.knowledge.worklist import Waiting

JOB = "knowledge_batch"
JOB_TAG = {"headrace/job": JOB}


@dataclass(frozen=True, slots=True)
class Last:
    """Which size class went last: where both wait, the other goes next."""

    large: bool = True

    @staticmethod
    def read(cursor: str | None) -> "Last":
        try:
            return Last(**json.loads(cursor)) if cursor else Last()
        except (ValueError, TypeError):
            return Last()  # of another version


@dg.sensor(
    name="document_batches",
    job_name=JOB,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a run for the documents that wait for their index: one at a time, bounded by number and "
    "bytes, organisations and sizes in turn.",
)
def document_batches(
    context: dg.SensorEvaluationContext, platform: Platform
) -> dg.SensorResult | dg.SkipReason:
    from assets.knowledge import worklist  # noqa: PLC0415

    if wait := under_way(context.instance, JOB_TAG):
        return wait
    last = Last.read(context.cursor)
    batch = worklist.batch(asyncio.run(_due(platform)), last_large=last.large)
    if not batch:
        return dg.SkipReason("no document waits")
    return ask(batch, time.time())


def ask(batch: "list[Waiting]", at: float) -> dg.SensorResult:
    """A run for the batch. Its key names the first document, the try that this will be, and when. Pure."""
    tenant, document, version = batch[0].key
    now = Last(batch[0].large)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{tenant}:{document}:{version}:{batch[0].attempt + 1}:{int(at)}",
                run_config={"ops": {FIRST: {"config": {"documents": written([one.key for one in batch])}}}},
                tags={"headrace/documents": str(len(batch))},
            )
        ],
        cursor=json.dumps(asdict(now)),
    )


async def _due(platform: Platform) -> "list[Waiting]":
    from assets.knowledge import worklist  # noqa: PLC0415
    from core.database import Database  # noqa: PLC0415

    database = Database(platform.database, role="system")
    try:
        async with database.writer() as connection:
            return await worklist.due(connection)
    finally:
        await database.close()
