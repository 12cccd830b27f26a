"""What runs together."""

import dagster as dg

from quality.checks import objects_intact
from quality.suite_checks import suites

_SUITES = dg.AssetSelection.checks(*suites.check_keys)
_SCRUB = dg.AssetSelection.checks(objects_intact)


def _assets(*names: str) -> dg.AssetSelection:
    """Assets with their gates. Suites and the scrub stay out: each costs more than a slice."""
    return dg.AssetSelection.assets(*names) - _SUITES - _SCRUB


usage_slice = dg.define_asset_job(
    "usage_slice",
    _assets("usage_events", "usage_hourly", "usage_daily", "usage_cells", "usage_producers"),
    description="Carries one slice of usage.records from the topic to published cells.",
    tags={"headrace/topic": "usage.records", "dagster/priority": "10"},
)

audit_slice = dg.define_asset_job(
    "audit_slice",
    _assets("audit_events"),
    description="Carries one slice of audit.logs into the lake.",
    tags={"headrace/topic": "audit.logs"},
)

publish_snapshot = dg.define_asset_job(
    "publish_snapshot",
    _assets("usage_snapshot"),
    description="Publishes a DuckDB snapshot of what is published.",
    tags={"headrace/job": "publish_snapshot"},
)

purge_usage = dg.define_asset_job(
    "purge_usage",
    _assets("usage_purge"),
    description="Proves what landed and takes it out of usage.records.",
    tags={"headrace/job": "purge_usage"},
)

scrub_usage = dg.define_asset_job(
    "scrub_usage",
    _SCRUB,
    description="Reads objects of usage_events again and compares them with their hashes.",
    tags={"headrace/job": "scrub_usage"},
)

knowledge_batch = dg.define_asset_job(
    "knowledge_batch",
    _assets("document_text", "document_chunks", "chunk_vectors", "knowledge_index"),
    description="Carries a batch of documents from their files to what a search finds.",
    tags={"headrace/job": "knowledge_batch", "dagster/priority": "5"},
)

knowledge_reconcile = dg.define_asset_job(
    "knowledge_reconcile",
    _assets("knowledge_reconciled"),
    description="Compares visible documents with the vector store and mends what differs.",
    tags={"headrace/job": "knowledge_reconcile"},
)

quality_suites = dg.define_asset_job(
    "quality_suites",
    _SUITES,
    description="Judges the newest usage, cells, snapshot and prices by the suites that analysts read.",
    tags={"headrace/job": "quality_suites"},
)
