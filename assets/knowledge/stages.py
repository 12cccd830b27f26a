"""The four steps of a document, each for a batch, one document in memory at a time.

A step reads what the step before put into the object store and the rows, never its memory: killed between
any two of its statements, it is done again with the same result. What is the document's fault ends in its
row; what is the platform's fault gives the batch back and fails the run.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from assets.knowledge import worklist
from assets.knowledge.chunking import Passage, divide, embedded_text
from assets.knowledge.parsers.extract import Extract, RefusedError
from assets.knowledge.parsing import ParserDiedError, parse
from assets.knowledge.store import Embedded, Names, Shelf, SourceChangedError
from assets.knowledge.worklist import Key, Task
from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.database import Database
from core.embedding.api import EmbeddingModel, Vectors
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.knowledge.terms import terms
from core.log import Logger
from core.messaging import outbox
from core.objects import open_objects
from core.objects.api import ObjectStoreError
from core.scratch import scratch
from core.settings import DatabaseSettings, ObjectSettings
from core.vectors import Chunk, VectorsError, chunk_id
from core.vectors import Vectors as Index

SOURCE: Final = "memory"
METER: Final = "embedding.tokens"
_LOG = Logger("assets.knowledge")
AT_ONCE: Final = 64
"""Passages embedded at once: between two groups a cancelled document is noticed."""
T = TypeVar("T")


class DerivedMissingError(Exception):
    """What an earlier step made is not there any more; the document begins anew."""


FAULTS: Final = (SQLAlchemyError, OSError, ObjectStoreError, VectorsError, DerivedMissingError)
"""What the platform could not do. Not the document's fault, so not one of its tries."""


class NothingDoneError(Exception):
    """A store is away; the batch was given back and is asked for again."""


@dataclass(slots=True)
class Done:
    """What a step did, for its page in Dagster: counts, never content."""

    documents: int = 0
    made: int = 0
    """Documents for which something was computed; the others had it already."""
    refused: int = 0
    """Ended as failed or needs_ocr."""
    again: int = 0
    """Failed this time and are tried again."""
    passages: int = 0
    embedded: int = 0
    """Passages that went through the model."""
    tokens: int = 0
    versions: list[Key] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Workshop:
    """The stores of one step."""

    database: Database
    shelf: Shelf
    model: EmbeddingModel

    def names(self, task: Task) -> Names:
        return Names.for_task(task, self.model)


@asynccontextmanager
async def workshop(
    database: DatabaseSettings, objects: ObjectSettings, model: EmbeddingModel
) -> AsyncIterator[Workshop]:
    connections = Database(database, role="system")
    try:
        async with open_objects(objects, database) as store:
            await store.ensure_bucket("derived", versioned=False)
            yield Workshop(connections, Shelf(store), model)
    finally:
        await connections.close()


@asynccontextmanager
async def _given_back(shop: Workshop, keys: Iterable[Key]) -> AsyncIterator[None]:
    """Give the batch back where a store is away.

    Raises:
        NothingDoneError
    """
    try:
        yield
    except FAULTS as error:
        async with shop.database.writer() as connection:
            await worklist.give_back(
                connection, keys, "a store of the platform does not answer; it goes on by itself"
            )
        raise NothingDoneError(f"{type(error).__name__}: the batch waits; see `headrace status`") from error


async def _each(
    shop: Workshop, tasks: Sequence[Task], done: Done, work: Callable[[Task], Awaitable[None]]
) -> None:
    """Do the work for each. One that fails is tried again later, and nobody else notices."""
    for task in tasks:
        try:
            await work(task)
        except FAULTS:
            raise
        except Exception as error:
            # The message may quote the document.
            reason = (
                str(error)
                if isinstance(error, ParserDiedError)
                else f"a step failed ({type(error).__name__})"
            )
            _LOG.warn(
                "a document failed",
                document=task.document,
                version=task.version,
                attempt=task.attempt,
                reason=reason,
            )
            async with shop.database.writer() as connection:
                await worklist.again(connection, task, reason)
            done.again += 1


async def read_texts(shop: Workshop, keys: Sequence[Key]) -> Done:
    """Take the batch and make texts of its sources; `queued` becomes `chunking`."""
    done = Done()
    async with _given_back(shop, keys):
        async with shop.database.writer() as connection:
            taken = await worklist.take(connection, keys)
        await _each(shop, taken, done, lambda task: _read_text(shop, task, done))
    return done


async def _read_text(shop: Workshop, task: Task, done: Done) -> None:
    done.documents += 1
    names = shop.names(task)
    extract = await shop.shelf.extract(names)
    if extract is None:
        try:
            extract = await _parsed(shop, task)
        except (RefusedError, SourceChangedError) as error:
            state = error.state if isinstance(error, RefusedError) else "failed"
            async with shop.database.writer() as connection:
                await worklist.end(connection, task, state, str(error))
            done.refused += 1
            return
        await shop.shelf.keep_extract(names, extract)
        done.made += 1
    async with shop.database.writer() as connection:
        await worklist.advance(
            connection,
            task,
            "chunking",
            pages=extract.pages or None,
            characters=len(extract.text),
            text_key=names.text,
        )


async def _parsed(shop: Workshop, task: Task) -> Extract:
    with scratch("source") as folder:
        path = folder / "source"
        await shop.shelf.fetch_source(task, path)
        return await asyncio.to_thread(parse, path, task.name, task.media_type)


async def make_passages(shop: Workshop, keys: Sequence[Key] | None) -> Done:
    """`chunking` becomes `embedding`."""
    done = Done()
    tasks = await _tasks(shop, keys, "chunking")
    async with _given_back(shop, [task.key for task in tasks]):
        await _each(shop, tasks, done, lambda task: _make_passages(shop, task, done))
    return done


async def _make_passages(shop: Workshop, task: Task, done: Done) -> None:
    done.documents += 1
    names = shop.names(task)
    passages = await shop.shelf.passages(names)
    if passages is None:
        extract = await _needed(shop.shelf.extract(names), "text")
        passages = await asyncio.to_thread(divide, extract, shop.model)
        await shop.shelf.keep_passages(names, passages)
        done.made += 1
    done.passages += len(passages)
    async with shop.database.writer() as connection:
        await worklist.advance(connection, task, "embedding", chunks=len(passages))


async def make_vectors(shop: Workshop, keys: Sequence[Key] | None) -> Done:
    """`embedding` becomes `indexing`; what was embedded is metered in the same transaction."""
    done = Done()
    tasks = await _tasks(shop, keys, "embedding")
    async with _given_back(shop, [task.key for task in tasks]):
        await _each(shop, tasks, done, lambda task: _make_vectors(shop, task, done))
    return done


async def _make_vectors(shop: Workshop, task: Task, done: Done) -> None:
    done.documents += 1
    names = shop.names(task)
    found = await shop.shelf.embedded(names, shop.model.dimensions)
    if found is None:
        extract = await _needed(shop.shelf.extract(names), "text")
        passages = await _needed(shop.shelf.passages(names), "passages")
        texts = [embedded_text(extract.text, passage) for passage in passages]
        vectors, new = await _vectors(shop, task, texts)
        # What is visible already was metered when it was made; another model of ours is no usage of theirs.
        again = task.version == task.live_version
        tokens = 0 if again or not new else sum(shop.model.tokens([texts[i] for i in new]))
        found = await shop.shelf.keep_embedded(names, vectors, tokens)
        done.made += 1
        done.embedded += len(new)
        done.tokens += tokens
    async with shop.database.writer() as connection:
        if await worklist.advance(connection, task, "indexing") and found.tokens:
            event = usage(task.tenant, names.vectors, shop.model.name, found)
            await outbox.enqueue(
                connection, [NewRecord("usage.records", event.key, event.encode())], task.tenant
            )


def usage(tenant: str, made: str, model: str, embedded: Embedded) -> UsageEvent:
    """Tokens embedded for one object of vectors: however often it is sent, it is one event."""
    return UsageEvent(
        id=derived_id(METER, tenant, made),
        source=SOURCE,
        time=embedded.at,
        tenant=tenant,
        data=UsageData(METER, str(embedded.tokens), {"provider": "local", "model": model}),
        type=TYPE,
        specversion="1.0",
    )


async def _vectors(shop: Workshop, task: Task, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
    """Vectors of the texts, and which of them went through the model; the others the visible version had."""
    known = await _known(shop, task)
    vectors = np.zeros((len(texts), shop.model.dimensions), np.float32)
    new = []
    for number, one in enumerate(texts):
        vector = known.get(_hash(one))
        if vector is None:
            new.append(number)
        else:
            vectors[number] = vector
    for start in range(0, len(new), AT_ONCE):
        group = new[start : start + AT_ONCE]
        vectors[group] = await asyncio.to_thread(shop.model.passages, [texts[i] for i in group])
    return vectors, new


async def _known(shop: Workshop, task: Task) -> dict[bytes, Vectors]:
    """Vectors of the visible version by what was embedded."""
    if task.live_version is None:
        return {}
    async with shop.database.writer() as connection:
        rows = await connection.execute(
            text(
                "select sha256, media_type from document_version "
                "where tenant_id = :tenant and document_id = :document and version = :version"
            ),
            {"tenant": task.tenant, "document": task.document, "version": task.live_version},
        )
        row = rows.first()
    if row is None or row[0] is None:
        return {}
    names = Names.of(task.tenant, row[0], task.name, row[1], shop.model)
    extract, passages = await shop.shelf.extract(names), await shop.shelf.passages(names)
    found = await shop.shelf.embedded(names, shop.model.dimensions)
    if extract is None or passages is None or found is None:
        return {}
    texts = [embedded_text(extract.text, passage) for passage in passages]
    return {_hash(one): vector for one, vector in zip(texts, found.vectors, strict=True)}


async def put_into_index(shop: Workshop, index: Index, keys: Sequence[Key] | None) -> Done:
    """`indexing` becomes `indexed`: write, count, make visible, remove what was visible before."""
    done = Done()
    tasks = await _tasks(shop, keys, "indexing")
    async with _given_back(shop, [task.key for task in tasks]):
        if tasks:
            await asyncio.to_thread(index.ensure, shop.model)
        await _each(shop, tasks, done, lambda task: _put(shop, index, task, done))
    return done


async def _put(shop: Workshop, index: Index, task: Task, done: Done) -> None:
    names = shop.names(task)
    extract = await _needed(shop.shelf.extract(names), "text")
    passages = await _needed(shop.shelf.passages(names), "passages")
    found = await _needed(shop.shelf.embedded(names, shop.model.dimensions), "vectors")
    rows = chunks(task, extract, passages, found.vectors)
    await asyncio.to_thread(_write, index, task, rows)
    async with shop.database.writer() as connection:
        published = await worklist.publish(connection, task, len(rows))
        lost = not published and await worklist.abandoned(connection, task)
        old = await worklist.replaced(connection, task)
    if lost:
        old.append(task.version)
    for version in dict.fromkeys(old):
        await asyncio.to_thread(index.delete, task.tenant, task.document, version)
        async with shop.database.writer() as connection:
            await worklist.forget_chunks(connection, (task.tenant, task.document, version))
    if published:
        done.documents += 1
        done.passages += len(rows)
        done.versions.append(task.key)


def _write(index: Index, task: Task, rows: Sequence[Chunk]) -> None:
    """Write the chunks of a version, so that it has these and no others.

    Raises:
        VectorsError: the store holds another number than was written.
    """
    index.upsert(task.tenant, rows)
    count = index.count(task.tenant, task.document, task.version)
    if count > len(rows):
        # Written by another division of the text: the ids differ, so nothing replaced them.
        index.delete(task.tenant, task.document, task.version)
        index.upsert(task.tenant, rows)
        count = index.count(task.tenant, task.document, task.version)
    if count != len(rows):
        raise VectorsError(
            f"version {task.version} of {task.document}: {len(rows)} chunks written, {count} counted"
        )


def chunks(task: Task, extract: Extract, passages: Sequence[Passage], vectors: Vectors) -> list[Chunk]:
    """The rows of a version in the index. Pure."""
    found = []
    for passage, vector in zip(passages, vectors, strict=True):
        body = extract.text[passage.start : passage.end]
        found.append(
            Chunk(
                id=chunk_id(
                    task.tenant, task.knowledge_base, task.document, task.version, passage.number, body
                ),
                document=task.document,
                version=task.version,
                number=passage.number,
                text=body,
                terms=terms(embedded_text(extract.text, passage)),
                vector=vector.tolist(),
                start=passage.start,
                end=passage.end,
                knowledge_base=task.knowledge_base,
                user=task.user,
                page=passage.page,
                headings=passage.headings,
            )
        )
    return found


async def _tasks(shop: Workshop, keys: Sequence[Key] | None, state: str) -> list[Task]:
    async with shop.database.writer() as connection:
        return await worklist.tasks(connection, keys, state)


async def _needed(found: Awaitable[T | None], what: str) -> T:
    """Raises: DerivedMissingError, where the step before did not leave it."""
    value = await found
    if value is None:
        raise DerivedMissingError(f"derived {what} are missing or damaged; they are made again")
    return value


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
