"""Asset checks of documents: thin, like the assets they guard."""

import asyncio
from typing import Any

import dagster as dg

from assets.knowledge.config import batch_of
from assets.resources import Platform

MOST_VERSIONS = 100
MOST_QUOTED = 10


@dg.asset_check(asset="knowledge_index")
def chunks_on_both_sides(context: dg.AssetCheckExecutionContext, platform: Platform) -> dg.AssetCheckResult:
    """The vector store holds as many chunks of a visible version as its row says.

    Looks at the versions of the run's batch, without one at the newest. Red: materialise `knowledge_reconciled`.
    """
    from assets.knowledge.evidence import chunk_counts  # noqa: PLC0415
    from quality.gates import chunks_agree  # noqa: PLC0415

    batch = batch_of(_run_config(context))
    counts = asyncio.run(chunk_counts(platform, batch, most=MOST_VERSIONS))
    return _result(chunks_agree(counts), len(counts))


@dg.asset_check(asset="knowledge_index")
def quotes_stand_in_their_source(
    context: dg.AssetCheckExecutionContext, platform: Platform
) -> dg.AssetCheckResult:
    """A passage in the index equals the extracted text from its start to its end, to the character.

    Looks at a sample of the run's batch, without one at the newest. Red: the message names the document; index
    it again, and compare the versions of parser and chunker.
    """
    from assets.knowledge.evidence import quotes  # noqa: PLC0415
    from quality.gates import quotes_agree  # noqa: PLC0415

    batch = batch_of(_run_config(context))
    found = asyncio.run(quotes(platform, batch, most=MOST_QUOTED))
    return _result(quotes_agree(found), len(found))


def _run_config(context: dg.AssetCheckExecutionContext) -> Any:
    return context.run.run_config


def _result(problems: list[str], looked_at: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems[:5]) or None,
        metadata={"looked at": looked_at, "problems": dg.MetadataValue.json(problems[:100])},
    )
