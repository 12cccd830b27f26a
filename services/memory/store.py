"""SQL of the memory service. Every function works on the caller's transaction.

Role `app` inside `with tenant(id):`, where row-level security decides what exists; what says so runs
as role `system` and looks across organisations.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.paging import Page

WAITING: Final = frozenset({"uploading", "queued", "parsing", "chunking", "embedding", "indexing"})
"""States of a version that is on its way; the others are ends."""


class SlugTakenError(Exception):
    """Another knowledge base of the organisation has this slug."""


@dataclass(frozen=True, slots=True)
class Base:
    id: str
    slug: str
    name: str
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a document and how far it is."""

    document_id: str
    version: int
    media_type: str
    size: int | None
    sha256: str | None
    object_key: str
    object_version: str | None
    state: str
    stage_at: datetime
    attempt: int
    reason: str
    next_attempt_at: datetime | None
    pages: int | None
    characters: int | None
    chunks: int | None
    text_key: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    knowledge_base_id: str | None
    kind: str
    user_id: str
    name: str
    live_version: int | None
    last_version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Visible:
    """What a search needs to know of a document that can be seen."""

    id: str
    name: str
    kind: str
    user_id: str
    knowledge_base_id: str | None
    live_version: int


_BASE: Final = "id, slug, name, created_by, created_at"
_DOCUMENT: Final = "id, knowledge_base_id, kind, user_id, name, live_version, last_version, created_at"
_VERSION: Final = (
    "document_id, version, media_type, size, sha256, object_key, object_version, state, stage_at, attempt, reason, "
    "next_attempt_at, pages, characters, chunks, text_key, created_at"
)
_PAGE: Final = """
    (cast(:above as text) is null or id > :above) and (cast(:below as text) is null or id < :below)
    order by case when :newest_first then id end desc, id limit :limit
"""


def window(page: Page) -> dict[str, object]:
    """Parameters of `_PAGE`: ids above and below, and one row more that tells whether there are more."""
    newest_first = page.order == "desc"
    above, below = (page.before, page.after) if newest_first else (page.after, page.before)
    return {
        "above": above or None,
        "below": below or None,
        "newest_first": newest_first,
        "limit": page.fetch,
    }


async def insert_base(connection: AsyncConnection, tenant_id: str, base: Base) -> None:
    """Raises: SlugTakenError."""
    try:
        async with connection.begin_nested():
            await connection.execute(
                text(
                    "insert into knowledge_base (tenant_id, id, slug, name, created_by, created_at) "
                    "values (:tenant_id, :id, :slug, :name, :created_by, :created_at)"
                ),
                {"tenant_id": tenant_id, **asdict(base)},
            )
    except IntegrityError as error:
        if "knowledge_base_slug" in str(error.orig):
            raise SlugTakenError(base.slug) from None
        raise


async def base(connection: AsyncConnection, base_id: str, *, lock: bool = False) -> Base | None:
    rows = await connection.execute(
        text(
            f"select {_BASE} from knowledge_base where id = :id and deleted_at is null {'for update' if lock else ''}"
        ),
        {"id": base_id},
    )
    row = rows.one_or_none()
    return Base(*row) if row else None


async def page_of_bases(connection: AsyncConnection, page: Page) -> list[Base]:
    rows = await connection.execute(
        text(f"select {_BASE} from knowledge_base where deleted_at is null and {_PAGE}"), window(page)
    )
    return [Base(*row) for row in rows]


async def rename_base(connection: AsyncConnection, base_id: str, name: str) -> None:
    await connection.execute(
        text("update knowledge_base set name = :name where id = :id"), {"id": base_id, "name": name}
    )


async def delete_base(connection: AsyncConnection, base_id: str) -> int:
    """Delete the base and its documents; returns how many these were."""
    await connection.execute(
        text("update knowledge_base set deleted_at = now() where id = :id"), {"id": base_id}
    )
    rows = await connection.execute(
        text(
            "update document set deleted_at = now(), live_version = null "
            "where knowledge_base_id = :id and deleted_at is null"
        ),
        {"id": base_id},
    )
    return rows.rowcount


async def insert_document(
    connection: AsyncConnection, tenant_id: str, document: Document, created_by: str
) -> bool:
    """False where a document with this id was there before, deleted or not."""
    rows = await connection.execute(
        text(
            """
            insert into document (tenant_id, id, knowledge_base_id, kind, user_id, name, created_by, created_at)
            values (:tenant_id, :id, :knowledge_base_id, :kind, :user_id, :name, :created_by, :created_at)
            on conflict do nothing
            """
        ),
        {"tenant_id": tenant_id, "created_by": created_by, **asdict(document)},
    )
    return rows.rowcount == 1


async def next_version(connection: AsyncConnection, document_id: str) -> int | None:
    """The number of a new version; the document stays locked until the transaction ends. None: no document."""
    rows = await connection.execute(
        text(
            "update document set last_version = last_version + 1 "
            "where id = :id and deleted_at is null returning last_version"
        ),
        {"id": document_id},
    )
    number: int | None = rows.scalar_one_or_none()
    return number


async def insert_version(
    connection: AsyncConnection,
    tenant_id: str,
    *,
    document_id: str,
    version: int,
    media_type: str,
    object_key: str,
    created_by: str,
    state: str = "uploading",
    size: int | None = None,
    sha256: str | None = None,
    object_version: str | None = None,
) -> Version:
    rows = await connection.execute(
        text(
            f"""
            insert into document_version (tenant_id, document_id, version, media_type, object_key, created_by, state,
                                          size, sha256, object_version)
            values (:tenant_id, :document_id, :version, :media_type, :object_key, :created_by, :state,
                    :size, :sha256, :object_version)
            returning {_VERSION}
            """
        ),
        {
            "tenant_id": tenant_id,
            "document_id": document_id,
            "version": version,
            "media_type": media_type,
            "object_key": object_key,
            "created_by": created_by,
            "state": state,
            "size": size,
            "sha256": sha256,
            "object_version": object_version,
        },
    )
    return Version(*rows.one())


async def document(connection: AsyncConnection, document_id: str) -> Document | None:
    rows = await connection.execute(
        text(f"select {_DOCUMENT} from document where id = :id and deleted_at is null"), {"id": document_id}
    )
    row = rows.one_or_none()
    return Document(*row) if row else None


async def page_of_documents(
    connection: AsyncConnection, page: Page, *, base_id: str | None = None, user_id: str | None = None
) -> list[Document]:
    """Documents of a knowledge base, or memories of a user."""
    rows = await connection.execute(
        text(
            f"""
            select {_DOCUMENT} from document
            where deleted_at is null
              and (cast(:base_id as text) is null or knowledge_base_id = :base_id)
              and (cast(:user_id as text) is null or (kind = 'memory' and user_id = :user_id)) and {_PAGE}
            """
        ),
        {"base_id": base_id, "user_id": user_id, **window(page)},
    )
    return [Document(*row) for row in rows]


async def versions(
    connection: AsyncConnection, document_ids: Sequence[str], *, newest_only: bool = False
) -> dict[str, list[Version]]:
    """Versions of documents, newest first."""
    distinct = "distinct on (document_id)" if newest_only else ""
    rows = await connection.execute(
        text(
            f"select {distinct} {_VERSION} from document_version where document_id = any(:ids) "
            "order by document_id, version desc"
        ),
        {"ids": list(document_ids)},
    )
    found: dict[str, list[Version]] = {}
    for row in rows:
        found.setdefault(row.document_id, []).append(Version(*row))
    return found


async def version(connection: AsyncConnection, document_id: str, number: int) -> Version | None:
    """A version of a document that is not deleted."""
    rows = await connection.execute(
        text(
            f"""
            select {_VERSION} from document_version v where document_id = :id and version = :version
              and exists (select 1 from document d where d.id = v.document_id and d.deleted_at is null)
            """
        ),
        {"id": document_id, "version": number},
    )
    row = rows.one_or_none()
    return Version(*row) if row else None


async def stored(
    connection: AsyncConnection, document_id: str, number: int, *, size: int, sha256: str, object_version: str
) -> bool:
    """The bytes of a version are there: it is queued. False where somebody else was first, or it is deleted."""
    rows = await connection.execute(
        text(
            """
            update document_version v set state = 'queued', stage_at = now(), size = :size, sha256 = :sha256,
                   object_version = :object_version, reason = ''
            where document_id = :id and version = :version and state = 'uploading'
              and exists (select 1 from document d where d.id = v.document_id and d.deleted_at is null)
            """
        ),
        {
            "id": document_id,
            "version": number,
            "size": size,
            "sha256": sha256,
            "object_version": object_version,
        },
    )
    return rows.rowcount == 1


async def cancel(connection: AsyncConnection, document_id: str) -> int:
    """End all versions that are on their way; returns how many."""
    rows = await connection.execute(
        text(
            """
            update document_version set state = 'cancelled', stage_at = now(), next_attempt_at = null,
                   reason = 'cancelled by request'
            where document_id = :id and state = any(:waiting)
            """
        ),
        {"id": document_id, "waiting": sorted(WAITING)},
    )
    return rows.rowcount


async def delete(connection: AsyncConnection, document_id: str) -> bool:
    """No search finds the document any more once this commits. False where there was none."""
    rows = await connection.execute(
        text(
            "update document set deleted_at = now(), live_version = null where id = :id and deleted_at is null"
        ),
        {"id": document_id},
    )
    return rows.rowcount == 1


async def delete_memories(connection: AsyncConnection, user_id: str) -> int:
    """Delete all memories of a user; returns how many."""
    rows = await connection.execute(
        text(
            "update document set deleted_at = now(), live_version = null "
            "where user_id = :user_id and kind = 'memory' and deleted_at is null"
        ),
        {"user_id": user_id},
    )
    return rows.rowcount


async def visible(connection: AsyncConnection, document_ids: Sequence[str]) -> dict[str, Visible]:
    """Those of the documents that can be seen now, each with the version that can."""
    rows = await connection.execute(
        text(
            "select id, name, kind, user_id, knowledge_base_id, live_version from document "
            "where id = any(:ids) and deleted_at is null and live_version is not null"
        ),
        {"ids": list(document_ids)},
    )
    return {row.id: Visible(*row) for row in rows}


async def requeue(connection: AsyncConnection, tenant_id: str, document_id: str, number: int) -> bool | None:
    """Put a version on the work list (role `system`). None: there is no such version; False: it is further."""
    rows = await connection.execute(
        text(
            """
            select v.state from document_version v join document d
                on d.tenant_id = v.tenant_id and d.id = v.document_id and d.deleted_at is null
            where v.tenant_id = :tenant_id and v.document_id = :id and v.version = :version
            """
        ),
        {"tenant_id": tenant_id, "id": document_id, "version": number},
    )
    state = rows.scalar_one_or_none()
    if state is None:
        return None
    if state != "uploading":
        return bool(state == "queued")
    await connection.execute(
        text(
            "update document_version set state = 'queued', stage_at = now() where tenant_id = :tenant_id "
            "and document_id = :id and version = :version and state = 'uploading'"
        ),
        {"tenant_id": tenant_id, "id": document_id, "version": number},
    )
    return True


async def give_up_uploads(connection: AsyncConnection, older_than: timedelta) -> int:
    """End versions whose bytes never came (role `system`)."""
    rows = await connection.execute(
        text(
            """
            update document_version set state = 'failed', stage_at = now(), reason = 'nothing was uploaded in time'
            where state = 'uploading' and created_at < now() - cast(:age as interval)
            """
        ),
        {"age": older_than},
    )
    return rows.rowcount
