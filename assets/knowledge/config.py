"""The batch a run carries."""

from typing import Any

import dagster as dg
from pydantic import Field

from assets.knowledge.worklist import Key

FIRST = "document_text"
"""The asset whose configuration names the batch for the whole run."""


class BatchConfig(dg.Config):
    """Decided by the sensor: [tenant, document, version] of each. None: what is due now."""

    documents: list[list[str]] = Field(default_factory=list)


def written(keys: list[Key]) -> list[list[str]]:
    """Keys as configuration."""
    return [[tenant, document, str(version)] for tenant, document, version in keys]


def keys(documents: list[list[str]]) -> list[Key]:
    return [(tenant, document, int(version)) for tenant, document, version in documents]


def batch_of(run_config: Any) -> list[Key] | None:
    """The batch of a run for the steps after the first; None where it names none: then all that wait for the step."""
    config = dict(run_config or {}).get("ops", {}).get(FIRST, {}).get("config", {})
    return keys(config["documents"]) if config.get("documents") else None
