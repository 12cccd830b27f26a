"""What the rows say is in the vector store, and what is.

Also how an installation gets another embedding model: its collection is empty, so all that is visible goes through
the index again; searches read the old collection, by words only, until the new one is complete.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from assets.knowledge import worklist
from assets.knowledge.worklist import Key
from core.database import Database
from core.embedding.api import EmbeddingModel
from core.settings import DatabaseSettings, VectorSettings
from core.vectors import Vectors

_ROWS: Final = """
    select v.tenant_id, v.document_id, v.version, v.chunks, v.version = d.live_version, v.state
    from document_version v join document d on d.tenant_id = v.tenant_id and d.id = v.document_id
    where v.chunks > 0 and d.deleted_at is null and v.state in ('indexed', 'failed', 'cancelled')
    order by v.tenant_id, v.document_id, v.version
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A version with chunks in the index, or so its row says."""

    key: Key
    chunks: int
    visible: bool
    state: str


@dataclass(frozen=True, slots=True)
class Reconciled:
    tenants: int
    versions: int
    removed: int
    queued: int
    broken: int
    """Visible, incomplete, and failed when they were written again: a person must look."""
    activated: bool
    """Searches read this model's collection since this run."""


def reconcile(database: DatabaseSettings, settings: VectorSettings, model: EmbeddingModel) -> Reconciled:
    """Remove what nobody sees, queue what is incomplete. Safe beside indexing, and to repeat.

    Raises:
        VectorsError: the vector store is away.
    """
    index = Vectors(settings, timeout=60)
    try:
        index.ensure(model)
        return asyncio.run(_reconcile(database, index, model))
    finally:
        index.close()


async def _reconcile(settings: DatabaseSettings, index: Vectors, model: EmbeddingModel) -> Reconciled:
    database = Database(settings, role="system")
    try:
        found = await rows(database)
        removed = 0
        for row in found:
            if not row.visible:
                tenant, document, version = row.key
                await asyncio.to_thread(index.delete, tenant, document, version)
                async with database.writer() as connection:
                    await worklist.forget_chunks(connection, row.key)
                removed += 1
        visible = [row for row in found if row.visible]
        wrong = await asyncio.to_thread(differing, visible, index.count)
        mended = [row for row in wrong if row.state != "failed"]
        for row in mended:
            async with database.writer() as connection:
                await _queue(connection, row.key)
        activated = False
        if not mended and not await _on_their_way(database):
            activated = await asyncio.to_thread(index.activate, model)
            await asyncio.to_thread(index.forget_others)
        tenants, broken = len({row.key[0] for row in visible}), len(wrong) - len(mended)
        return Reconciled(tenants, len(visible), removed, len(mended), broken, activated)
    finally:
        await database.close()


async def rows(database: Database) -> list[Row]:
    async with database.writer() as connection:
        found = await connection.execute(text(_ROWS))
        return [Row((row[0], row[1], row[2]), row[3], bool(row[4]), row[5]) for row in found]


async def anything(settings: DatabaseSettings) -> bool:
    """True where some version has chunks in the index, or so its row says."""
    database = Database(settings, role="system")
    try:
        async with database.writer() as connection:
            found = await connection.execute(
                text("select exists (select 1 from document_version where chunks > 0)")
            )
            return bool(found.scalar_one())
    finally:
        await database.close()


async def _on_their_way(database: Database) -> bool:
    """True where a visible version is going through the index again."""
    async with database.writer() as connection:
        found = await connection.execute(
            text(
                "select exists (select 1 from document_version v join document d on d.tenant_id = v.tenant_id "
                "and d.id = v.document_id and d.live_version = v.version where d.deleted_at is null "
                "and v.state not in ('indexed', 'failed', 'cancelled'))"
            )
        )
        return bool(found.scalar_one())


def differing(visible: list[Row], count: Callable[..., int]) -> list[Row]:
    """Visible versions of which the index holds another number of chunks. One count a tenant where all is well.

    Args:
        visible: by tenant.
        count: of a tenant, a document, a version; as `Vectors.count`.
    """
    found = []
    for tenant, group in groupby(visible, key=lambda row: row.key[0]):
        versions = list(group)
        if count(tenant) != sum(row.chunks for row in versions):
            found += [row for row in versions if count(*row.key) != row.chunks]
    return found


async def _queue(connection: AsyncConnection, key: Key) -> None:
    """Index a visible version again, under its own number; also where somebody cancelled that: half of it
    would be found for ever."""
    await connection.execute(
        text(
            "update document_version set state = 'queued', stage_at = now(), attempt = 0, next_attempt_at = null, "
            "reason = 'its chunks are incomplete; they are written again' where tenant_id = :tenant "
            "and document_id = :document and version = :version and state in ('indexed', 'cancelled')"
        ),
        {"tenant": key[0], "document": key[1], "version": key[2]},
    )
