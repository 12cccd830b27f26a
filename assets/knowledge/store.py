"""Sources and derived data of documents in the object store, by content hash: what is there is not made again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.knowledge import chunking, parsers
from assets.knowledge.chunking import Passage
from assets.knowledge.parsers.detect import hint
from assets.knowledge.parsers.extract import Block, Extract
from assets.knowledge.worklist import Task
from core.embedding.api import EmbeddingModel, Vectors
from core.knowledge import derived
from core.objects.api import ObjectCorruptError, ObjectNotFoundError, ObjectStore

SOURCES: Final = "knowledge"
_DIFFERS: Final = "the stored file is not the one that was uploaded: its SHA-256 differs"


class SourceChangedError(Exception):
    """The stored bytes are not those that the row promises."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of the passages, in their order, and what making them took."""

    vectors: Vectors
    tokens: int
    """Tokens that were embedded for them: those of passages that an earlier version had cost nothing."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Names:
    """Where the derived data of one content lies. Versions of parser, chunker and model are part of it."""

    text: str
    structure: str
    passages: str
    vectors: str
    cost: str

    @staticmethod
    def of(tenant: str, sha256: str, name: str, media_type: str, model: EmbeddingModel) -> "Names":
        parser = "-".join(filter(None, [parsers.VERSION, hint(name, media_type)]))
        text = derived.text_key(tenant, sha256, parser)
        stem = f"{parser}-{chunking.VERSION}-{model.digest[:16]}"
        prefix = derived.prefix(tenant, sha256)
        return Names(
            text=text,
            structure=f"{text.removesuffix('.txt')}.json",
            passages=f"{prefix}passages/{stem}.json",
            vectors=f"{prefix}vectors/{stem}.f32",
            cost=f"{prefix}vectors/{stem}.json",
        )

    @staticmethod
    def for_task(task: Task, model: EmbeddingModel) -> "Names":
        return Names.of(task.tenant, task.sha256, task.name, task.media_type, model)


class Shelf:
    """What was made of contents. Each object is written last to first, so that one that is there is whole."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def fetch_source(self, task: Task, path: Path) -> None:
        """Write the source to `path`.

        Raises:
            SourceChangedError: it is gone, or other bytes than were uploaded.
        """
        digest = hashlib.sha256()
        try:
            with path.open("wb") as file:
                async for piece in self._objects.stream(
                    SOURCES, task.object_key, version=task.object_version
                ):
                    digest.update(piece)
                    file.write(piece)
        except ObjectNotFoundError:
            raise SourceChangedError("the uploaded file is not in the object store any more") from None
        except ObjectCorruptError:
            raise SourceChangedError(_DIFFERS) from None
        if digest.hexdigest() != task.sha256:
            raise SourceChangedError(_DIFFERS)

    async def extract(self, names: Names) -> Extract | None:
        text, structure = await self._get(names.text), await self._get(names.structure)
        if text is None or structure is None:
            return None
        found = json.loads(structure)
        return Extract(text.decode(), [Block(*block) for block in found["blocks"]], found["pages"])

    async def keep_extract(self, names: Names, extract: Extract) -> None:
        blocks = [[b.start, b.end, b.kind, b.level, b.page] for b in extract.blocks]
        await self._put_json(names.structure, {"pages": extract.pages, "blocks": blocks})
        await self._objects.put(derived.BUCKET, names.text, extract.text.encode())

    async def passages(self, names: Names) -> list[Passage] | None:
        found = await self._get(names.passages)
        if found is None:
            return None
        return [Passage(**{**one, "headings": tuple(one["headings"])}) for one in json.loads(found)]

    async def keep_passages(self, names: Names, passages: list[Passage]) -> None:
        await self._put_json(names.passages, [asdict(passage) for passage in passages])

    async def embedded(self, names: Names, dimensions: int) -> Embedded | None:
        content, cost = await self._get(names.vectors), await self._get(names.cost)
        if content is None or cost is None:
            return None
        found = json.loads(cost)
        vectors = np.frombuffer(content, "<f4").reshape(-1, dimensions)
        return Embedded(vectors, found["tokens"], datetime.fromisoformat(found["at"]))

    async def keep_embedded(self, names: Names, vectors: Vectors, tokens: int) -> Embedded:
        at = datetime.now(UTC).replace(microsecond=0)
        await self._put_json(names.cost, {"tokens": tokens, "at": at.isoformat()})
        await self._objects.put(derived.BUCKET, names.vectors, vectors.astype("<f4").tobytes())
        return Embedded(vectors, tokens, at)

    async def _get(self, key: str) -> bytes | None:
        try:
            return await self._objects.get(derived.BUCKET, key)
        except (ObjectNotFoundError, ObjectCorruptError):
            return None  # made again

    async def _put_json(self, key: str, value: Any) -> None:
        await self._objects.put(derived.BUCKET, key, json.dumps(value, ensure_ascii=False).encode())
