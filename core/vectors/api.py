"""What goes into the vector store and what comes out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.ids import length_prefixed


class VectorsError(Exception):
    """The store refused; the message says what, to what, and what to do."""


class VectorsUnavailableError(VectorsError):
    """The store does not answer. A write may or may not have happened; writing again is safe."""


class LexicalUnsupportedError(VectorsError):
    """This server has no word search (Milvus before 2.5)."""


class ModelMismatchError(VectorsError):
    """What is searched was embedded by another model."""


class Model(Protocol):
    """What the store needs to know of an embedding model (`core.embedding`)."""

    digest: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage of one version of a document, with its vector."""

    id: str
    """`chunk_id(…)`: the same passage again replaces itself."""
    document: str
    version: int
    number: int
    """Position in the document, from 0."""
    text: str
    """Source text from `start` to `end`, unchanged."""
    terms: Sequence[str]
    """Tokens (`core.knowledge.terms`)."""
    vector: Sequence[float]
    start: int
    """Code points of the extracted text."""
    end: int
    knowledge_base: str = ""
    """Empty for memories."""
    user: str = ""
    """Whose memory it is; empty for documents."""
    page: int = 0
    """From 1; 0 where the source has no pages."""
    headings: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. `score`: cosine (dense) or BM25 (lexical), larger is better."""

    id: str
    document: str
    version: int
    number: int
    text: str
    start: int
    end: int
    knowledge_base: str
    user: str
    page: int
    headings: tuple[str, ...]
    score: float


def chunk_id(tenant: str, knowledge_base: str, document: str, version: int, number: int, text: str) -> str:
    """Derived from the passage and its place, so that writing it twice is writing it once."""
    parts = (tenant, knowledge_base, document, str(version), str(number), text)
    return hashlib.sha256(length_prefixed(parts)).hexdigest()
