"""The vector store: chunks of documents, found by meaning and by words, always inside one tenant."""

from core.vectors.api import (
    Chunk,
    Hit,
    LexicalUnsupportedError,
    ModelMismatchError,
    VectorsError,
    VectorsUnavailableError,
    chunk_id,
)
from core.vectors.store import Vectors

__all__ = [
    "Chunk",
    "Hit",
    "LexicalUnsupportedError",
    "ModelMismatchError",
    "Vectors",
    "VectorsError",
    "VectorsUnavailableError",
    "chunk_id",
]
