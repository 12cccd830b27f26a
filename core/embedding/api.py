"""The seam of the embedding model: texts to vectors of unit length."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Spans = npt.NDArray[Any]


class EmbeddingModel(Protocol):
    """Thread-safe. Nothing heavy is loaded before the first call that needs it."""

    name: str
    """What answers and usage records call it."""
    digest: str
    """Names everything a vector depends on: weights, prefixes, precision. Vectors of different digests
    must not meet in one collection."""
    dimensions: int
    max_tokens: int
    """Tokens of a passage that the model reads; what is beyond is not in its vector."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a passage, the prefix and the ends included."""
        ...

    def offsets(self, text: str) -> Spans:
        """[start, end) in code points of each token of the text alone; int64 of shape (tokens, 2), ascending."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts to be found; float32 of shape (len(texts), dimensions), each of length 1."""
        ...

    def query(self, text: str) -> Vectors:
        """Vector of a question; float32 of shape (dimensions,), of length 1."""
        ...
