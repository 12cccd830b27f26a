"""Documents: made, versioned, cancelled, indexed again, deleted. Bytes come in `transfers`."""

import mimetypes
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.clock import now, rfc3339
from core.contracts.knowledge import DocumentJob
from core.database import Database, tenant
from core.ids import new_id
from core.messaging import queues
from services.common.errors import Problem, not_found
from services.common.idempotency import Answer, Repeatable, once
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.memory import schemas, store, uploads
from services.memory.erase import Eraser

QUEUE: Final = "document.index"


class Documents:
    """
    Args:
        database: role `app`, without a replica: an answer must not be older than the request.
        address: public address of the API, for upload addresses.
        internal_key: signs upload addresses.
    """

    def __init__(self, database: Database, eraser: Eraser, address: str, internal_key: bytes) -> None:
        self._database, self._eraser = database, eraser
        self._address, self._key = address.rstrip("/"), internal_key

    async def create(
        self, principal: Principal, base_id: str, body: schemas.NewDocument, repeatable: Repeatable
    ) -> Response:
        """202 with the document and where to put its bytes. Raises: Problem 404 for the knowledge base."""
        with tenant(own_tenant(principal)) as _:
            async with self._database.writer() as connection:
                return await once(
                    connection, repeatable, lambda: self._create(connection, principal, base_id, body)
                )

    async def _create(
        self, connection: AsyncConnection, principal: Principal, base_id: str, body: schemas.NewDocument
    ) -> Answer:
        if await store.base(connection, base_id, lock=True) is None:
            raise not_found("knowledge base")
        document = store.Document(new_id("doc"), base_id, "document", "", body.name, None, 0, now())
        await store.insert_document(connection, principal.tenant_id, document, principal.subject)
        return await self._version(connection, principal, document, body)

    async def new_version(
        self, principal: Principal, document_id: str, body: schemas.Content, repeatable: Repeatable
    ) -> Response:
        """202 with where to put the bytes of the next version; the one before stays visible until then."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                document = readable(principal, await _document(connection, document_id))
                return await once(
                    connection, repeatable, lambda: self._version(connection, principal, document, body)
                )

    async def _version(
        self,
        connection: AsyncConnection,
        principal: Principal,
        document: store.Document,
        body: schemas.Content,
    ) -> Answer:
        number = await store.next_version(connection, document.id)
        if number is None:
            raise not_found("document")
        version = await store.insert_version(
            connection,
            principal.tenant_id,
            document_id=document.id,
            version=number,
            media_type=body.media_type or media_type_of(document.name),
            object_key=object_key(principal.tenant_id, document.id, number),
            created_by=principal.subject,
            size=body.size,
            sha256=body.sha256,
        )
        expires = int(time.time()) + uploads.VALID_SECONDS
        token = uploads.sign(uploads.Upload(principal.tenant_id, document.id, number, expires), self._key)
        content: schemas.Accepted = {
            "document": schemas.shown_document(document, [version]),
            "version": number,
            "upload": {
                "url": f"{self._address}/api/v1/uploads/{token}",
                "method": "PUT",
                "expires": rfc3339(datetime.fromtimestamp(expires, UTC)),
            },
        }
        return Answer(202, content)

    async def page(
        self, principal: Principal, page: Page, *, base_id: str | None = None, user_id: str | None = None
    ) -> dict[str, Any]:
        """Documents of a knowledge base, or memories of a user. Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.reader() as connection:
                if base_id is not None and await store.base(connection, base_id) is None:
                    raise not_found("knowledge base")
                found = await store.page_of_documents(connection, page, base_id=base_id, user_id=user_id)
                versions = await store.versions(connection, [one.id for one in found], newest_only=True)
        return listing([schemas.shown_document(one, versions.get(one.id, [])) for one in found], page)

    async def get(self, principal: Principal, document_id: str) -> schemas.DocumentView:
        """Raises: Problem 404."""
        document, versions = await self.find(principal, document_id)
        return schemas.shown_document(document, versions)

    async def versions(self, principal: Principal, document_id: str) -> dict[str, Any]:
        """All versions, newest first. Raises: Problem 404."""
        _, versions = await self.find(principal, document_id)
        return {"object": "list", "data": [schemas.shown_version(one) for one in versions]}

    async def find(
        self, principal: Principal, document_id: str
    ) -> tuple[store.Document, Sequence[store.Version]]:
        """A document that the caller may see, with its versions, newest first. Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.reader() as connection:
                document = readable(principal, await _document(connection, document_id))
                versions = await store.versions(connection, [document.id])
        return document, versions.get(document.id, [])

    async def reindex(self, principal: Principal, document_id: str) -> schemas.DocumentView:
        """Index the newest stored content again, as a version of its own: readers see no moment in between.

        Raises: Problem 404, 409 `nothing_stored`.
        """
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                document = readable(principal, await _document(connection, document_id))
                number = await store.next_version(connection, document_id)
                versions = (await store.versions(connection, [document_id])).get(document_id, [])
                content = next((one for one in versions if one.object_version is not None), None)
                if content is None or number is None:
                    raise Problem(409, "nothing_stored", "Nothing to index", "Upload the document first.")
                version = await store.insert_version(
                    connection,
                    principal.tenant_id,
                    document_id=document_id,
                    version=number,
                    media_type=content.media_type,
                    object_key=content.object_key,
                    created_by=principal.subject,
                    state="queued",
                    size=content.size,
                    sha256=content.sha256,
                    object_version=content.object_version,
                )
                await queued(connection, principal.tenant_id, document, number)
        return schemas.shown_document(document, [version])

    async def cancel(self, principal: Principal, document_id: str) -> schemas.DocumentView:
        """End what is on its way; the version that is visible stays so. Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                document = readable(principal, await _document(connection, document_id))
                await store.cancel(connection, document_id)
                versions = await store.versions(connection, [document_id])
        return schemas.shown_document(document, versions.get(document_id, []))

    async def delete(self, principal: Principal, document_id: str) -> None:
        """No search finds it from now on; vectors, bytes and derived data follow. Raises: Problem 404."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                readable(principal, await _document(connection, document_id))
                await store.cancel(connection, document_id)
                if not await store.delete(connection, document_id):
                    raise not_found("document")
                await audit.record(
                    connection,
                    action="document.delete",
                    actor=principal.subject,
                    tenant_id=principal.tenant_id,
                    target=document_id,
                    outcome="success",
                )
        self._eraser.wake()

    async def delete_memory(self, principal: Principal, document_id: str) -> None:
        """As `delete`, for a memory of the caller only. Raises: Problem 404."""
        document, _ = await self.find(principal, document_id)
        if document.kind != "memory":
            raise not_found("memory")
        await self.delete(principal, document_id)

    async def delete_memories(self, principal: Principal) -> int:
        """Delete all memories of the caller; returns how many."""
        with tenant(own_tenant(principal)):
            async with self._database.writer() as connection:
                count = await store.delete_memories(connection, principal.subject)
                await audit.record(
                    connection,
                    action="memory.delete_all",
                    actor=principal.subject,
                    tenant_id=principal.tenant_id,
                    target=principal.subject,
                    outcome="success",
                    detail={"count": str(count)},
                )
        self._eraser.wake()
        return count


async def queued(connection: AsyncConnection, tenant_id: str, document: store.Document, number: int) -> None:
    """Tell the work list about a version, in the transaction that queues it."""
    job = DocumentJob(tenant_id, document.knowledge_base_id or "", document.id, number)
    await queues.enqueue(connection, QUEUE, "index", job.encode(), tenant_id)


def own_tenant(principal: Principal) -> str:
    """Raises: Problem 403 for a caller of no organisation."""
    if not principal.tenant_id:
        raise Problem(
            403, "tenant_required", "Not allowed", "Documents belong to an organisation; you act for none."
        )
    return principal.tenant_id


def readable(principal: Principal, document: store.Document) -> store.Document:
    """The document, unless it is the memory of somebody else. Raises: Problem 404."""
    if document.kind == "memory" and principal.kind != "system" and document.user_id != principal.subject:
        raise not_found("document")
    return document


def object_key(tenant_id: str, document_id: str, version: int) -> str:
    """Key of a version's bytes in bucket `knowledge`."""
    return f"{tenant_id}/{document_id}/{version}"


def media_type_of(name: str) -> str:
    return (
        _ENDINGS.get(name.rpartition(".")[2].lower())
        or mimetypes.guess_type(name)[0]
        or "application/octet-stream"
    )


_ENDINGS: Final = {"md": "text/markdown", "markdown": "text/markdown", "txt": "text/plain"}


async def _document(connection: AsyncConnection, document_id: str) -> store.Document:
    found = await store.document(connection, document_id)
    if found is None:
        raise not_found("document")
    return found
