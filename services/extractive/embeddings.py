"""Vectors by multilingual-e5-small, the model that finds documents, in the shape of the OpenAI API."""

import asyncio
import base64
from pathlib import Path
from typing import Any, Final

from core.embedding.e5 import E5Model
from services.common.errors import invalid
from services.extractive.schemas import EmbeddingRequest

MODEL: Final = E5Model.name
DESCRIPTION: Final = "The model of documents and searches. It reads up to 512 tokens of a text; `input_type` is `query` or `passage`."
AT_ONCE: Final = 16
"""Texts whose vectors are made before another request may have its turn."""


class Embeddings:
    """Loads the weights, about 400 MB, with the first request.

    Args:
        folder: where the graph of the model is kept, as of `core.embedding.open_model`.
    """

    dimensions: Final = E5Model.dimensions

    def __init__(self, folder: Path) -> None:
        self._model = E5Model(folder)
        self._turn = asyncio.Lock()

    async def answer(self, asked: EmbeddingRequest) -> dict[str, Any]:
        """The list of vectors in the order of the texts, and the tokens of all.

        Raises:
            Problem: 422, a text is longer than the model reads: nothing is cut off in silence.
            GraphError, WeightsError: the model cannot be loaded.
        """
        texts = asked.texts
        tokens = await asyncio.to_thread(self._model.tokens, texts)
        for number, count in enumerate(tokens):
            if count > self._model.max_tokens:
                raise invalid(
                    "/input" if isinstance(asked.input, str) else f"/input/{number}",
                    f"{count} tokens are more than the {self._model.max_tokens} that {MODEL} reads; split the text.",
                    code="context_length_exceeded",
                )
        data = []
        for start in range(0, len(texts), AT_ONCE):
            async with self._turn:
                vectors = await asyncio.to_thread(
                    self._vectors, texts[start : start + AT_ONCE], asked.input_type
                )
            data += [
                {
                    "object": "embedding",
                    "index": start + number,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    if asked.encoding_format == "base64"
                    else vector.tolist(),
                }
                for number, vector in enumerate(vectors)
            ]
        usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
        return {"object": "list", "data": data, "model": MODEL, "usage": usage}

    def _vectors(self, texts: list[str], kind: str | None) -> Any:
        return (
            self._model.passages(texts) if kind == "passage" else [self._model.query(text) for text in texts]
        )
