"""HTTP of the memory service."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from core.ids import is_id
from services.common.auth import require, require_system
from services.common.body import documented, json_body
from services.common.errors import not_found
from services.common.idempotency import RepeatableOf
from services.common.paging import PageQuery
from services.common.principal import Principal
from services.memory import schemas
from services.memory.bases import Bases
from services.memory.documents import Documents, own_tenant
from services.memory.handlers import Handlers
from services.memory.texts import Texts
from services.memory.transfers import Transfers

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Memory:
    """What the routes work with; the app puts it at `app.state.memory`."""

    bases: Bases
    documents: Documents
    transfers: Transfers
    handlers: Handlers
    texts: Texts


async def _memory(request: Request) -> Memory:
    found: Memory = request.app.state.memory
    return found


def _known_shape(what: str, text: str) -> str:
    if not is_id(text):
        raise not_found(what)
    return text


async def _base_id(base_id: Annotated[str, Path(alias="id", description="`kb_…`")]) -> str:
    return _known_shape("knowledge base", base_id)


async def _document_id(
    document_id: Annotated[str, Path(alias="id", description="`doc_…` or `mem_…`")],
) -> str:
    return _known_shape("document", document_id)


MemoryOf = Annotated[Memory, Depends(_memory)]
BaseId = Annotated[str, Depends(_base_id)]
DocumentId = Annotated[str, Depends(_document_id)]
Reader = Annotated[Principal, Depends(require("memory:read"))]
Writer = Annotated[Principal, Depends(require("memory:write"))]


@router.post(
    "/api/v1/knowledge-bases",
    tags=["knowledge bases"],
    status_code=201,
    response_model=schemas.KnowledgeBase,
    openapi_extra=documented(schemas.NewBase),
)
async def create_base(
    request: Request,
    memory: MemoryOf,
    principal: Writer,
    body: Annotated[schemas.NewBase, Depends(json_body(schemas.NewBase))],
    repeatable: RepeatableOf,
) -> Response:
    """Make a knowledge base. Honours `Idempotency-Key`."""
    return await memory.bases.create(principal, body, repeatable(principal.subject, _content(body)))


@router.get("/api/v1/knowledge-bases", tags=["knowledge bases"])
async def list_bases(memory: MemoryOf, principal: Reader, page: PageQuery) -> dict[str, Any]:
    """Knowledge bases of your organisation."""
    return await memory.bases.page(principal, page)


@router.get("/api/v1/knowledge-bases/{id}", tags=["knowledge bases"])
async def get_base(memory: MemoryOf, principal: Reader, base_id: BaseId) -> schemas.KnowledgeBase:
    return await memory.bases.get(principal, base_id)


@router.patch(
    "/api/v1/knowledge-bases/{id}", tags=["knowledge bases"], openapi_extra=documented(schemas.Rename)
)
async def rename_base(
    memory: MemoryOf,
    principal: Writer,
    base_id: BaseId,
    body: Annotated[schemas.Rename, Depends(json_body(schemas.Rename))],
) -> schemas.KnowledgeBase:
    return await memory.bases.rename(principal, base_id, body.name)


@router.delete("/api/v1/knowledge-bases/{id}", tags=["knowledge bases"], status_code=204)
async def delete_base(memory: MemoryOf, principal: Writer, base_id: BaseId) -> None:
    """Delete it with all its documents: no search finds them from the next request on."""
    await memory.bases.delete(principal, base_id)


@router.post(
    "/api/v1/knowledge-bases/{id}/documents",
    tags=["documents"],
    status_code=202,
    response_model=schemas.Accepted,
    openapi_extra=documented(schemas.NewDocument),
)
async def create_document(
    memory: MemoryOf,
    principal: Writer,
    base_id: BaseId,
    body: Annotated[schemas.NewDocument, Depends(json_body(schemas.NewDocument))],
    repeatable: RepeatableOf,
) -> Response:
    """Announce a document; then PUT its bytes to `upload.url`, which needs no other credential.

    It is searchable once its state is `indexed`. Honours `Idempotency-Key`.
    """
    return await memory.documents.create(
        principal, base_id, body, repeatable(principal.subject, _content(body))
    )


@router.get("/api/v1/knowledge-bases/{id}/documents", tags=["documents"])
async def list_documents(
    memory: MemoryOf, principal: Reader, base_id: BaseId, page: PageQuery
) -> dict[str, Any]:
    """Documents of a knowledge base, each with its newest version and how far that is."""
    return await memory.documents.page(principal, page, base_id=base_id)


@router.get("/api/v1/documents/{id}", tags=["documents"])
async def get_document(memory: MemoryOf, principal: Reader, document_id: DocumentId) -> schemas.DocumentView:
    """A document: state, reason, attempt and when the next one is due; which version is visible."""
    return await memory.documents.get(principal, document_id)


@router.get("/api/v1/documents/{id}/versions", tags=["documents"])
async def list_versions(memory: MemoryOf, principal: Reader, document_id: DocumentId) -> dict[str, Any]:
    """All versions, newest first."""
    return await memory.documents.versions(principal, document_id)


@router.post(
    "/api/v1/documents/{id}/versions",
    tags=["documents"],
    status_code=202,
    response_model=schemas.Accepted,
    openapi_extra=documented(schemas.Content),
)
async def new_version(
    memory: MemoryOf,
    principal: Writer,
    document_id: DocumentId,
    body: Annotated[schemas.Content, Depends(json_body(schemas.Content))],
    repeatable: RepeatableOf,
) -> Response:
    """Announce a new version. The one before stays visible until all of the new one can be found."""
    return await memory.documents.new_version(
        principal, document_id, body, repeatable(principal.subject, _content(body))
    )


@router.get("/api/v1/documents/{id}/versions/{version}/text", tags=["documents"])
async def get_text(
    memory: MemoryOf,
    principal: Reader,
    document_id: DocumentId,
    version: Annotated[int, Path(ge=1, le=2**53)],
    start: Annotated[int, Query(ge=0, le=2**53, description="Code point, from 0.")],
    end: Annotated[int, Query(ge=0, le=2**53, description="Exclusive.")],
) -> dict[str, Any]:
    """Extracted text between two places, such as those of a citation."""
    text = await memory.texts.slice(principal, document_id, version, start, end)
    return {
        "document": document_id,
        "version": version,
        "start": start,
        "end": start + len(text),
        "text": text,
    }


@router.post("/api/v1/documents/{id}/reindex", tags=["documents"], status_code=202)
async def reindex(memory: MemoryOf, principal: Writer, document_id: DocumentId) -> schemas.DocumentView:
    """Index the stored content again, as a new version."""
    return await memory.documents.reindex(principal, document_id)


@router.post("/api/v1/documents/{id}/cancel", tags=["documents"])
async def cancel(memory: MemoryOf, principal: Writer, document_id: DocumentId) -> schemas.DocumentView:
    """End what is on its way to the index."""
    return await memory.documents.cancel(principal, document_id)


@router.delete("/api/v1/documents/{id}", tags=["documents"], status_code=204)
async def delete_document(memory: MemoryOf, principal: Writer, document_id: DocumentId) -> None:
    """No search finds it from the next request on; its bytes, vectors and derived data are erased."""
    await memory.documents.delete(principal, document_id)


@router.put("/api/v1/uploads/{token}", tags=["documents"])
async def upload(request: Request, memory: MemoryOf, token: str) -> schemas.Uploaded:
    """Store the bytes of one version. The address is the credential; it ends after an hour.

    The same bytes again give the same answer.
    """
    return await memory.transfers.take(token, request.headers.get("content-length", ""), request.stream())


@router.post(
    "/api/v1/search",
    tags=["search"],
    response_model=schemas.Found,
    openapi_extra=documented(schemas.Search),
)
async def search(
    memory: MemoryOf,
    principal: Reader,
    body: Annotated[schemas.Search, Depends(json_body(schemas.Search))],
) -> dict[str, Any]:
    """Passages that answer a question, best first: by meaning, by words, or by both (`hybrid`)."""
    return await memory.handlers.search(principal, body)


@router.get("/api/v1/memories", tags=["memories"])
async def list_memories(memory: MemoryOf, principal: Reader, page: PageQuery) -> dict[str, Any]:
    """What is remembered of your finished turns."""
    own_tenant(principal)
    return await memory.documents.page(principal, page, user_id=principal.subject)


@router.delete("/api/v1/memories", tags=["memories"])
async def delete_memories(memory: MemoryOf, principal: Reader) -> dict[str, int]:
    """Forget all of your turns."""
    return {"deleted": await memory.documents.delete_memories(principal)}


@router.delete("/api/v1/memories/{id}", tags=["memories"], status_code=204)
async def delete_memory(memory: MemoryOf, principal: Reader, document_id: DocumentId) -> None:
    """Forget one turn."""
    await memory.documents.delete_memory(principal, document_id)


@router.post(
    "/internal/embeddings",
    tags=["internal"],
    include_in_schema=False,
    openapi_extra=documented(schemas.Texts),
)
async def embeddings(
    memory: MemoryOf,
    _: Annotated[Principal, Depends(require_system)],
    body: Annotated[schemas.Texts, Depends(json_body(schemas.Texts, max_bytes=4 << 20))],
) -> dict[str, Any]:
    """Vectors of texts, for other parts of the platform; tokens count for `tenant`."""
    return await memory.handlers.embed(body)


def _content(body: Any) -> bytes:
    return msgspec.json.encode(body)
