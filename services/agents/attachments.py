"""Files of a conversation: streamed to the object store, queued for the index, gone with the conversation.

They are documents like any other, in a knowledge base of the conversation's own, so that an agent that
may look only into some knowledge bases finds what was attached here.
"""

import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.audit import NO_TENANT
from core.clock import now
from core.contracts.knowledge import DocumentJob
from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.database import Database, tenant
from core.eventlog.api import NewRecord
from core.ids import derived_id, new_id
from core.messaging import outbox, queues
from core.objects.api import ObjectInfo, ObjectStore, ObjectStoreError, ObjectStoreUnavailableError
from services.agents import store
from services.agents.store import Viewer
from services.common.body import too_large
from services.common.errors import Problem, not_found, unavailable
from services.common.principal import Principal

BUCKET: Final = "knowledge"
QUEUE: Final = "document.index"
_PLAIN: Final = "application/octet-stream"
_ENDINGS: Final = {"md": "text/markdown", "markdown": "text/markdown", "txt": "text/plain"}
_LISTED: Final = 200


@dataclass(frozen=True, slots=True)
class Attachment:
    document: str
    conversation_id: str
    name: str
    media_type: str
    size: int | None
    state: str
    reason: str
    created_at: datetime


class Attachments:
    """
    Args:
        database: role `app`.
        max_bytes: largest file.
    """

    def __init__(self, database: Database, objects: ObjectStore, *, max_bytes: int) -> None:
        self._database, self._objects, self._max_bytes = database, objects, max_bytes

    async def add(
        self,
        principal: Principal,
        conversation_id: str,
        *,
        name: str,
        media_type: str,
        body: AsyncIterator[bytes],
    ) -> Attachment:
        """Store a file and put it on the work list; it is searchable once its state is `indexed`.

        Raises:
            Problem: 404, 413 `body_too_large`, 422 `empty_attachment`, 503.
        """
        document = new_id("doc")
        kind = media_type_of(name, media_type)
        with tenant(principal.tenant_id or NO_TENANT):
            async with self._database.writer() as connection:
                # Locked: whoever deletes it comes before, or finds the file.
                viewer = Viewer.of(principal)
                if await store.conversation(connection, viewer, conversation_id, lock=True) is None:
                    raise not_found("conversation")
                await _insert(connection, principal, conversation_id, document, name, kind)
            key = object_key(principal.tenant_id, document)
            try:
                stored = await self._put(key, body)
            except BaseException:
                await self._forget(document)
                raise
            try:
                async with self._database.writer() as connection:
                    await _queue(connection, principal.tenant_id, conversation_id, document, stored)
            except Problem:
                # The conversation was deleted meanwhile.
                with suppress(ObjectStoreError):
                    await self._objects.delete(BUCKET, key, version=stored.version)
                raise
        return Attachment(document, conversation_id, name, kind, stored.size, "queued", "", now())

    async def of(self, principal: Principal, conversation_id: str) -> Sequence[Attachment]:
        """Oldest first. Raises: Problem 404."""
        with tenant(principal.tenant_id or NO_TENANT):
            # Another instance may have stored one a moment ago, and the service memory says how far each is.
            async with self._database.reader(primary=True) as connection:
                if await store.conversation(connection, Viewer.of(principal), conversation_id) is None:
                    raise not_found("conversation")
                rows = await connection.execute(
                    text(
                        "select d.id, d.name, v.media_type, v.size, v.state, v.reason, d.created_at from document d"
                        " join document_version v on v.tenant_id = d.tenant_id and v.document_id = d.id"
                        " and v.version = d.last_version"
                        " where d.knowledge_base_id = :base and d.deleted_at is null order by d.id limit :limit"
                    ),
                    {"base": base_of(principal.tenant_id, conversation_id), "limit": _LISTED},
                )
                return [
                    Attachment(
                        row.id, conversation_id, row.name, row.media_type, row.size, row.state, row.reason, row.created_at
                    )
                    for row in rows
                ]  # fmt: skip

    async def _put(self, key: str, body: AsyncIterator[bytes]) -> ObjectInfo:
        async def bounded() -> AsyncIterator[bytes]:
            size = 0
            async for piece in body:
                size += len(piece)
                if size > self._max_bytes:
                    raise too_large(self._max_bytes)
                if piece:
                    yield piece
            if not size:
                raise Problem(422, "empty_attachment", "Nothing attached", "Send the file as the body.")

        try:
            return await self._objects.put(BUCKET, key, bounded())
        except ObjectStoreUnavailableError:
            raise unavailable("The object store") from None

    async def _forget(self, document: str) -> None:
        async with self._database.writer() as connection:
            await connection.execute(text("delete from document where id = :id"), {"id": document})


async def has_any(connection: AsyncConnection, tenant_id: str, conversation_id: str) -> bool:
    """Whether something was attached to the conversation."""
    return bool(
        await connection.scalar(
            text("select exists (select from knowledge_base where id = :id and deleted_at is null)"),
            {"id": base_of(tenant_id, conversation_id)},
        )
    )


async def delete_all(connection: AsyncConnection, tenant_id: str, conversation_id: str) -> None:
    """No search finds them once this commits; memory removes bytes and vectors."""
    base = {"base": base_of(tenant_id, conversation_id)}
    await connection.execute(
        text(
            "update document set deleted_at = now(), live_version = null"
            " where knowledge_base_id = :base and deleted_at is null"
        ),
        base,
    )
    await connection.execute(
        text("update knowledge_base set deleted_at = now() where id = :base and deleted_at is null"), base
    )


def base_of(tenant_id: str, conversation_id: str) -> str:
    """Id of the conversation's knowledge base; it is there once something was attached."""
    return f"kb_{derived_id('conversation', tenant_id, conversation_id)}"


def object_key(tenant_id: str, document: str) -> str:
    return f"{tenant_id}/{document}/1"


def media_type_of(name: str, declared: str) -> str:
    """As declared, unless that says nothing: then by the name's ending."""
    plain = declared.partition(";")[0].strip().lower()
    if plain and plain != _PLAIN and plain.isascii() and len(plain) <= 127:
        return plain
    ending = name.rpartition(".")[2].lower()
    return _ENDINGS.get(ending) or mimetypes.guess_type(name)[0] or _PLAIN


async def _insert(
    connection: AsyncConnection,
    principal: Principal,
    conversation_id: str,
    document: str,
    name: str,
    media_type: str,
) -> None:
    known = {
        "base": base_of(principal.tenant_id, conversation_id),
        "slug": conversation_id.replace("_", "-"),
        "document": document,
        "name": name,
        "by": principal.subject,
        "media_type": media_type,
        "key": object_key(principal.tenant_id, document),
    }
    for statement in (
        "insert into knowledge_base (tenant_id, id, slug, name, created_by)"
        " values (current_tenant(), :base, :slug, 'Attachments', :by) on conflict do nothing",
        "insert into document (tenant_id, id, knowledge_base_id, name, last_version, created_by)"
        " values (current_tenant(), :document, :base, :name, 1, :by)",
        "insert into document_version (tenant_id, document_id, version, media_type, object_key, state, created_by)"
        " values (current_tenant(), :document, 1, :media_type, :key, 'uploading', :by)",
    ):
        await connection.execute(text(statement), known)


async def _queue(
    connection: AsyncConnection, tenant_id: str, conversation_id: str, document: str, stored: ObjectInfo
) -> None:
    rows = await connection.execute(
        text(
            "update document_version v set state = 'queued', stage_at = now(), size = :size, sha256 = :sha256,"
            " object_version = :version where v.document_id = :document and v.version = 1 and v.state = 'uploading'"
            " and exists (select from document d where d.id = v.document_id and d.deleted_at is null)"
        ),
        {
            "document": document,
            "size": stored.size,
            "sha256": stored.sha256,
            "version": stored.version,
        },
    )
    if rows.rowcount != 1:
        raise not_found("conversation")
    job = DocumentJob(tenant_id, base_of(tenant_id, conversation_id), document, 1)
    await queues.enqueue(connection, QUEUE, "index", job.encode(), tenant_id)
    event = UsageEvent(
        id=derived_id("storage.bytes", tenant_id, document, "1"),
        source="agents",
        time=now(),
        tenant=tenant_id,
        data=UsageData("storage.bytes", str(stored.size), {"bucket": BUCKET}),
        type=TYPE,
        specversion="1.0",
    )
    await outbox.enqueue(connection, [NewRecord("usage.records", event.key, event.encode())], tenant_id)
