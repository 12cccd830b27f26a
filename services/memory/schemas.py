"""What the memory service reads, and how it shows what it holds."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from typing_extensions import TypedDict

from core.clock import rfc3339
from services.memory.store import Base, Document, Version

MAX_TOP_K: Final = 50
DEFAULT_TOP_K: Final = 8
MAX_QUERY: Final = 4_000
"""Characters of a question."""

Mode = Literal["dense", "lexical", "hybrid"]
Name = Annotated[str, Meta(min_length=1, max_length=300)]
_SLUG: Final = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"


class NewBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    slug: Annotated[str, Meta(pattern=_SLUG, description="How people name it: a-z, 0-9 and -, at most 63.")]
    name: Name


class Rename(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What will be uploaded; what is said here is checked when the bytes come."""

    media_type: Annotated[
        str,
        Meta(max_length=100, description="Such as `application/pdf`; by the name's ending where left out."),
    ] = ""
    size: Annotated[int, Meta(ge=0, description="Bytes.")] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="Lower-case hex.")] | None = None


class NewDocument(Content, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[Name, Meta(description="A file name, such as `handbook.pdf`.")]


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    query: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY)]
    knowledge_bases: (
        Annotated[list[str], Meta(max_length=100, description="Ids; all of them where left out.")] | None
    ) = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] = DEFAULT_TOP_K
    mode: Mode = "hybrid"
    memories: Annotated[bool, Meta(description="Search your own memories too.")] = False
    explain: Annotated[bool, Meta(description="Say what became of each candidate.")] = False


class Texts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tenant: Annotated[str, Meta(min_length=1, max_length=128)]
    """Whom the tokens are counted for."""
    input: Annotated[list[str], Meta(min_length=1, max_length=256)]
    request: Annotated[str, Meta(min_length=1, max_length=128)]
    """Names the request: sent again, its tokens count once."""
    kind: Literal["passage", "query"] = "passage"


class KnowledgeBase(TypedDict):
    id: str
    object: Literal["knowledge_base"]
    slug: str
    name: str
    created_at: str


class DocumentVersion(TypedDict):
    version: int
    media_type: str
    size: int | None
    sha256: str | None
    state: str
    stage_at: str
    attempt: int
    reason: str
    next_attempt_at: str | None
    pages: int | None
    characters: int | None
    chunks: int | None
    created_at: str


class DocumentView(TypedDict):
    id: str
    object: Literal["document", "memory"]
    knowledge_base: str | None
    name: str
    state: str
    live_version: int | None
    version: DocumentVersion | None
    created_at: str


class UploadAddress(TypedDict):
    url: str
    method: Literal["PUT"]
    expires: str


class Accepted(TypedDict):
    document: DocumentView
    version: int
    upload: UploadAddress


class Uploaded(TypedDict):
    document: str
    version: int
    state: str
    size: int
    sha256: str


def shown_base(base: Base) -> KnowledgeBase:
    return {
        "id": base.id,
        "object": "knowledge_base",
        "slug": base.slug,
        "name": base.name,
        "created_at": rfc3339(base.created_at),
    }


def shown_version(version: Version) -> DocumentVersion:
    return {
        "version": version.version,
        "media_type": version.media_type,
        "size": version.size,
        "sha256": version.sha256,
        "state": version.state,
        "stage_at": rfc3339(version.stage_at),
        "attempt": version.attempt,
        "reason": version.reason,
        "next_attempt_at": rfc3339(version.next_attempt_at) if version.next_attempt_at else None,
        "pages": version.pages,
        "characters": version.characters,
        "chunks": version.chunks,
        "created_at": rfc3339(version.created_at),
    }


def shown_document(document: Document, versions: Sequence[Version]) -> DocumentView:
    """A document with its newest version, whose state is the document's."""
    newest = versions[0] if versions else None
    return {
        "id": document.id,
        "object": "memory" if document.kind == "memory" else "document",
        "knowledge_base": document.knowledge_base_id,
        "name": document.name,
        "state": newest.state if newest else "uploading",
        "live_version": document.live_version,
        "version": shown_version(newest) if newest else None,
        "created_at": rfc3339(document.created_at),
    }


class FoundPassage(TypedDict):
    chunk: str
    document: str
    version: int
    name: str
    knowledge_base: str | None
    kind: str
    text: str
    page: int | None
    start: int
    end: int
    headings: list[str]
    score: float
    dense_score: float | None
    lexical_score: float | None


class Found(TypedDict):
    object: Literal["list"]
    data: list[FoundPassage]
    mode: str
    degraded: list[str]
    explain: dict[str, Any] | None
