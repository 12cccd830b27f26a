"""Search and embedding as HTTP answers."""

import asyncio
from typing import Any

from core.database import Database, tenant
from core.embedding import EmbeddingModel
from core.vectors import (
    LexicalUnsupportedError,
    ModelMismatchError,
    VectorsUnavailableError,
)
from services.common.errors import Problem, unavailable
from services.common.principal import Principal
from services.memory import schemas, usage
from services.memory.documents import own_tenant
from services.memory.search import BusyError, Passage, Question, Search


class Handlers:
    def __init__(self, database: Database, search: Search, model: EmbeddingModel) -> None:
        self._database, self._search, self._model = database, search, model

    async def search(self, principal: Principal, body: schemas.Search) -> dict[str, Any]:
        """Raises: Problem 403, 409 `model_mismatch`, 422 `mode_unsupported`, 429 `busy`, 503."""
        question = Question(
            tenant=own_tenant(principal),
            query=body.query,
            top_k=body.top_k,
            mode=body.mode,
            knowledge_bases=body.knowledge_bases,
            user=principal.subject if body.memories else "",
            explain=body.explain,
        )
        try:
            answer = await self._search.find(question)
        except BusyError as error:
            raise Problem(
                429, "busy", "Too many searches", f"{error}; try again.", headers={"retry-after": "1"}
            ) from None
        except VectorsUnavailableError:
            raise unavailable("The vector store") from None
        except LexicalUnsupportedError as error:
            raise Problem(422, "mode_unsupported", "Not on this server", str(error)) from None
        except ModelMismatchError as error:
            raise Problem(409, "model_mismatch", "Another model made the index", str(error)) from None
        return {
            "object": "list",
            "data": [shown(passage) for passage in answer.passages],
            "mode": body.mode,
            "degraded": answer.degraded,
            "explain": answer.explain,
        }

    async def embed(self, body: schemas.Texts) -> dict[str, Any]:
        """Vectors in the order of the texts. The tokens are counted before the answer is given."""
        tokens = sum(await asyncio.to_thread(self._model.tokens, body.input))
        with tenant(body.tenant):
            async with self._database.writer() as connection:
                await usage.embedded(connection, body.tenant, body.request, self._model.name, tokens)
        return {
            "model": self._model.name,
            "dimensions": self._model.dimensions,
            "tokens": tokens,
            "data": await asyncio.to_thread(self._vectors, body),
        }

    def _vectors(self, body: schemas.Texts) -> list[list[float]]:
        if body.kind == "query":
            return [[float(x) for x in self._model.query(one)] for one in body.input]
        return [[float(x) for x in row] for row in self._model.passages(body.input)]


def shown(passage: Passage) -> schemas.FoundPassage:
    hit = passage.hit
    return {
        "chunk": hit.id,
        "document": hit.document,
        "version": hit.version,
        "name": passage.document.name,
        "knowledge_base": passage.document.knowledge_base_id,
        "kind": passage.document.kind,
        "text": hit.text,
        "page": hit.page or None,
        "start": hit.start,
        "end": hit.end,
        "headings": list(hit.headings),
        "score": passage.score,
        "dense_score": passage.dense,
        "lexical_score": passage.lexical,
    }
