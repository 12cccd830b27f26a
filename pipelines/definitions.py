"""Everything Dagster runs, put together. The one code location of the platform."""

import dagster as dg

from assets.audit import assets as audit
from assets.knowledge import assets as knowledge
from assets.usage import assets as usage
from pipelines import billing, jobs, schedules
from pipelines.maintenance import lake_maintenance
from pipelines.replay import replay_range
from pipelines.wiring import RESOURCES
from quality import checks, suite_checks
from quality import knowledge as knowledge_checks
from sensors import ALL as SENSORS

defs = dg.Definitions(
    assets=[
        *dg.load_assets_from_modules([usage, audit, knowledge]),
        usage.usage_records,
        audit.audit_logs,
        knowledge.documents,
    ],
    asset_checks=dg.load_asset_checks_from_modules([checks, knowledge_checks, suite_checks]),
    jobs=[
        jobs.usage_slice,
        jobs.audit_slice,
        jobs.publish_snapshot,
        jobs.purge_usage,
        jobs.scrub_usage,
        jobs.knowledge_batch,
        jobs.knowledge_reconcile,
        jobs.quality_suites,
        lake_maintenance,
        *billing.ALL,
        replay_range,
    ],
    schedules=schedules.ALL,
    sensors=SENSORS,
    resources=RESOURCES,
    # A process for each step would add 4 s of CPU to each; a run has few, short steps.
    executor=dg.in_process_executor,
)
