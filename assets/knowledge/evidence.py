"""What the checks of the index look at: counts of both sides, and passages as the index gives them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from assets.knowledge.store import Names, Shelf
from assets.knowledge.worklist import Key
from core.database import Database
from core.objects import open_objects
from core.settings import DatabaseSettings
from core.vectors import ModelMismatchError, Vectors

if TYPE_CHECKING:
    from assets.resources import Platform

PROBES: Final = 5
"""Passages of a version that are looked up by their own vectors."""
_VISIBLE: Final = """
    select v.tenant_id, v.document_id, v.version, v.chunks, v.sha256, v.media_type, d.name,
           coalesce(d.knowledge_base_id, ''), d.user_id
    from document_version v join document d on d.tenant_id = v.tenant_id and d.id = v.document_id
    where d.deleted_at is null and d.live_version = v.version and v.state = 'indexed'
      and (cast(:all as boolean) or v.document_id = any(cast(:documents as text[])))
    order by v.stage_at desc limit :most
"""

Count = tuple[str, int, int]
"""Document with version, chunks by its row, chunks in the index."""
Quote = tuple[str, str, str]
"""Document with version and place, what the index holds, what the text holds there."""


async def chunk_counts(platform: "Platform", batch: Sequence[Key] | None, *, most: int) -> list[Count]:
    """Chunks of visible versions on both sides."""
    with _opened(platform) as index:
        rows = await _visible(platform.database, batch, most)
        return [
            (
                f"{row[1]} version {row[2]}",
                row[3],
                await asyncio.to_thread(index.count, row[0], row[1], row[2]),
            )
            for row in rows
        ]


async def quotes(platform: "Platform", batch: Sequence[Key] | None, *, most: int) -> list[Quote]:
    """Passages of visible versions, found by their own vectors, with what their text says at that place.

    None while searches still read what another embedding model made.
    """
    model, found = platform.model(), []
    rows = await _visible(platform.database, batch, most)
    with _opened(platform) as index, suppress(ModelMismatchError):
        async with open_objects(platform.objects, platform.database) as objects:
            shelf = Shelf(objects)
            for tenant, document, version, _, sha256, media_type, name, base, user in rows:
                names = Names.of(tenant, sha256, name, media_type, model)
                extract = await shelf.extract(names)
                embedded = await shelf.embedded(names, model.dimensions)
                if extract is None or embedded is None:
                    continue
                step = max(1, len(embedded.vectors) // PROBES)
                for vector in embedded.vectors[::step][:PROBES]:
                    hits = await asyncio.to_thread(
                        index.dense, tenant, vector.tolist(), 3, [base] if base else [], user=user
                    )
                    found += [
                        (
                            f"{document} version {version} at {hit.start}",
                            hit.text,
                            extract.text[hit.start : hit.end],
                        )
                        for hit in hits
                        if (hit.document, hit.version) == (document, version)
                    ]
    return found


async def _visible(
    settings: DatabaseSettings, batch: Sequence[Key] | None, most: int
) -> list[tuple[Any, ...]]:
    database = Database(settings, role="system")
    try:
        async with database.writer() as connection:
            rows = await connection.execute(
                text(_VISIBLE),
                {"all": batch is None, "documents": sorted({key[1] for key in batch or ()}), "most": most},
            )
            return [tuple(row) for row in rows]
    finally:
        await database.close()


@contextmanager
def _opened(platform: "Platform") -> Iterator[Vectors]:
    index = Vectors(platform.vectors, platform.model(), timeout=60)
    try:
        yield index
    finally:
        index.close()
