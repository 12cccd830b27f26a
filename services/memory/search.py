"""Search: two searches at once, one ranking, and only what is visible now.

The vector store may hold several versions of a document; the row in PostgreSQL says which one is
visible. The row is read after the vectors. Where it names a version that was not yet among them, the
vectors are searched again: a version is made visible only when all of it can be found.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from core.database import Database, tenant
from core.embedding import EmbeddingModel
from core.ids import is_id, new_id
from core.knowledge.fusion import CANDIDATES, Fused, fuse, scaled
from core.knowledge.terms import terms
from core.vectors import Hit, LexicalUnsupportedError, ModelMismatchError, Vectors
from services.memory import store, usage
from services.memory.schemas import Mode

IN_FLIGHT: Final = 64
"""Searches at once; more are refused, because they would only wait for each other."""
THREADS: Final = 8
_ATTEMPTS: Final = 5


class BusyError(Exception):
    """Too many searches at once; try again."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched, for whom."""

    tenant: str
    query: str
    top_k: int
    mode: Mode = "hybrid"
    knowledge_bases: Sequence[str] | None = None
    """None: all."""
    user: str = ""
    """Whose memories are searched too; empty: documents only."""
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of the visible version of a document."""

    hit: Hit
    document: store.Visible
    score: float
    dense: float | None
    lexical: float | None


@dataclass(slots=True)
class Answer:
    passages: list[Passage]
    degraded: list[str] = field(default_factory=list)
    """Which part of the search could not be done, and why."""
    explain: dict[str, Any] | None = None


@dataclass(slots=True)
class _Candidates:
    hits: dict[str, Hit]
    dense: dict[str, float]
    lexical: dict[str, float]
    degraded: list[str]


class Search:
    """
    Args:
        database: role `app`, without a replica: one that lags would show both versions or neither.
    """

    def __init__(self, database: Database, vectors: Vectors, model: EmbeddingModel) -> None:
        self._database, self._vectors, self._model = database, vectors, model
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._running = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def find(self, question: Question) -> Answer:
        """The best passages, best first.

        Raises:
            BusyError, VectorsUnavailableError
            LexicalUnsupportedError, ModelMismatchError: where the mode asked for cannot be done at all.
        """
        if self._running >= IN_FLIGHT:
            raise BusyError(f"{IN_FLIGHT} searches are running")
        if question.knowledge_bases is not None:
            question = replace(question, knowledge_bases=[*filter(is_id, question.knowledge_bases)])
        self._running += 1
        try:
            return await self._find(question)
        finally:
            self._running -= 1

    async def _find(self, question: Question) -> Answer:
        began = time.perf_counter()
        if question.knowledge_bases is not None and not question.knowledge_bases and not question.user:
            return Answer([], explain={} if question.explain else None)
        vector = None
        if question.mode != "lexical":
            vector = await self._embed(question)
        embedded = time.perf_counter()
        known: dict[str, int] = {}
        searches = 0
        while searches < _ATTEMPTS:
            searches += 1
            found = await self._candidates(question, vector)
            visible = await self._visible(question, found.hits.values())
            newer = _newer(found.hits.values(), visible)
            # A version that was visible before this search began is all in it: it just does not match.
            if all(known.get(id) == version for id, version in newer.items()):
                break
            known |= newer
        searched = time.perf_counter()
        ranked = _ranked(found, question.mode)
        shown = [
            Passage(hit, visible[hit.document], one.score, one.dense, one.lexical)
            for one in ranked
            if _is_visible(hit := found.hits[one.id], visible, question)
        ]
        answer = Answer(shown[: question.top_k], found.degraded)
        if question.explain:
            answer.explain = {
                **_explained(found, ranked, visible, question, answer),
                "milliseconds": {
                    "embedding": round(1000 * (embedded - began), 1),
                    "search": round(1000 * (searched - embedded), 1),
                },
                "searches": searches,
            }
        return answer

    async def _embed(self, question: Question) -> Sequence[float]:
        """The query's vector; its tokens are counted before the answer is given."""
        loop = asyncio.get_running_loop()
        vector = loop.run_in_executor(self._pool, self._model.query, question.query)
        tokens = (await loop.run_in_executor(self._pool, self._model.tokens, [question.query]))[0]
        with tenant(question.tenant):
            async with self._database.writer() as connection:
                await usage.embedded(connection, question.tenant, new_id("req"), self._model.name, tokens)
        return [float(one) for one in await vector]

    async def _candidates(self, question: Question, vector: Sequence[float] | None) -> _Candidates:
        """Both searches at once; in mode hybrid one that the server cannot do is left out and named."""
        loop = asyncio.get_running_loop()
        bases, user = question.knowledge_bases, question.user

        def dense() -> list[Hit]:
            if vector is None:
                return []
            return self._vectors.dense(question.tenant, vector, CANDIDATES, bases, user=user)

        def lexical() -> list[Hit]:
            if question.mode == "dense":
                return []
            return self._vectors.lexical(question.tenant, terms(question.query), CANDIDATES, bases, user=user)

        results = await asyncio.gather(
            loop.run_in_executor(self._pool, dense),
            loop.run_in_executor(self._pool, lexical),
            return_exceptions=True,
        )
        found = _Candidates({}, {}, {}, [])
        for scores, result in zip((found.dense, found.lexical), results, strict=True):
            if (
                isinstance(result, (LexicalUnsupportedError, ModelMismatchError))
                and question.mode == "hybrid"
            ):
                found.degraded.append(str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                for hit in result:
                    found.hits[hit.id] = hit
                    scores[hit.id] = hit.score
        if len(found.degraded) == 2:
            raise ModelMismatchError("; ".join(found.degraded))
        return found

    async def _visible(self, question: Question, hits: Any) -> dict[str, store.Visible]:
        ids = sorted({hit.document for hit in hits})
        if not ids:
            return {}
        with tenant(question.tenant):
            async with self._database.writer() as connection:
                return await store.visible(connection, ids)


def _newer(hits: Any, visible: dict[str, store.Visible]) -> dict[str, int]:
    """Documents whose visible version is newer than all of it that was found."""
    found: dict[str, int] = {}
    for hit in hits:
        found[hit.document] = max(found.get(hit.document, 0), hit.version)
    return {id: one.live_version for id, one in visible.items() if one.live_version > found[id]}


def _is_visible(hit: Hit, visible: dict[str, store.Visible], question: Question) -> bool:
    document = visible.get(hit.document)
    if document is None or document.live_version != hit.version:
        return False
    if document.kind == "memory":
        return bool(question.user) and document.user_id == question.user
    return question.knowledge_bases is None or document.knowledge_base_id in question.knowledge_bases


def _ranked(found: _Candidates, mode: Mode) -> list[Fused]:
    if mode == "hybrid":
        return fuse(found.dense, found.lexical)
    only = found.dense if mode == "dense" else found.lexical
    return sorted(
        (Fused(id, score, found.dense.get(id), found.lexical.get(id)) for id, score in scaled(only).items()),
        key=lambda one: (-one.score, -only[one.id], one.id),
    )


def _explained(
    found: _Candidates,
    ranked: Sequence[Fused],
    visible: dict[str, store.Visible],
    question: Question,
    answer: Answer,
) -> dict[str, Any]:
    """What became of each candidate, and the stage that lost it."""
    dense = {id: rank for rank, id in enumerate(found.dense, 1)}
    lexical = {id: rank for rank, id in enumerate(found.lexical, 1)}
    returned = {passage.hit.id for passage in answer.passages}
    candidates = []
    for rank, one in enumerate(ranked, 1):
        hit = found.hits[one.id]
        lost, why = "", ""
        if not _is_visible(hit, visible, question):
            document = visible.get(hit.document)
            lost = "visibility"
            why = (
                f"version {document.live_version} is visible, this is version {hit.version}"
                if document
                else "the document is deleted or not indexed yet"
            )
        elif one.id not in returned:
            lost, why = "top_k", f"{question.top_k} better ones were asked for"
        candidates.append(
            {
                "chunk": one.id,
                "document": hit.document,
                "version": hit.version,
                "rank": rank,
                "score": one.score,
                "dense_rank": dense.get(one.id),
                "lexical_rank": lexical.get(one.id),
                "lost": lost,
                "why": why,
            }
        )
    return {
        "terms": terms(question.query),
        "dense": len(found.dense),
        "lexical": len(found.lexical),
        "candidates": candidates,
    }
