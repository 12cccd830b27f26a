"""A model without meaning, for tests: equal words give near vectors, deterministically, in microseconds."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from core.embedding.api import Spans, Vectors

_WORDS: Final = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_]+|[^\w\s]|_")


class HashModel:
    """Feature hashing (Weinberger et al. 2009) of lower-case words; what a vector says is which words there were."""

    name = "hash"
    digest = hashlib.sha256(b"headrace hash embedding 1").hexdigest()
    dimensions = 384
    max_tokens = 512

    def tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_WORDS.findall(text)) + 4 for text in texts]

    def offsets(self, text: str) -> Spans:
        spans = [match.span() for match in _WORDS.finditer(text)]
        return np.array(spans, np.int64).reshape(-1, 2)

    def passages(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), self.dimensions), np.float32)
        for number, text in enumerate(texts):
            for word in _WORDS.findall(text.lower()):
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                place = int.from_bytes(digest, "little")
                found[number, place % self.dimensions] += 1.0 if place >> 63 else -1.0
            if not found[number].any():
                found[number, 0] = 1.0
        vectors: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
        return vectors

    def query(self, text: str) -> Vectors:
        vector: Vectors = self.passages([text])[0]
        return vector
