"""Runs of the index die by SIGKILL at every kind of moment; what comes out is what undisturbed ones make, and whoever searches
meanwhile finds one whole version of each document."""

import asyncio
import hashlib
import multiprocessing
import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from assets.knowledge.reconcile import reconcile
from assets.knowledge.stages import METER
from core.contracts.usage import parse as usage_event
from core.database import Database
from core.ids import derived_id
from core.knowledge import derived
from core.objects import open_objects
from core.settings import DatabaseSettings, ObjectSettings, VectorSettings
from core.vectors import Vectors
from services.memory.search import Question, Search
from tests.assets.knowledge.library import BASE, Library, docx, pdf
from tests.chaos import indexer
from tests.chaos.indexer import Fuse

WORDS = "river bridge lantern harbour copper meadow signal orchard granite velvet compass thunder".split()  # noqa: SIM905
NAMES = ("guide.md", "notes.txt", "letter.docx", "report.pdf", "page.html")
KILLS = 2
"""Of one version: the third try is its last."""
NEVER = ("", 0)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.chaos.indexer"])


def content(name: str, seed: int) -> bytes:
    """Some passages of a version; each has the document's own word and is of no other version."""
    pick, stem = random.Random(f"{name} {seed}"), name.partition(".")[0]
    sections = [
        " ".join(
            f"{stem} {' '.join(pick.choices(WORDS, k=12))} {seed}-{section}-{line}." for line in range(14)
        )
        for section in range(pick.randint(1, 4))
    ]
    match name.partition(".")[2]:
        case "md":
            return "\n\n".join(f"# Part {i}\n\n{body}" for i, body in enumerate(sections)).encode()
        case "html":
            body = "".join(f"<h2>Part {i}</h2><p>{body}</p>" for i, body in enumerate(sections))
            return f"<html><body>{body}</body></html>".encode()
        case "docx":
            return docx(*[("Normal", f"{stem} {body}") for body in sections])
        case "pdf":
            return pdf(*[body[:400] for body in sections])
        case _:
            return "\n\n".join(sections).encode()


@dataclass
class Shelf:
    """A library whose documents have names, indexed by processes of their own."""

    library: Library
    documents: dict[str, str] = field(default_factory=dict)

    def upload(self, contents: Mapping[str, bytes]) -> None:
        for name, data in contents.items():
            key = asyncio.run(self.library.upload(name, data, document=self.documents.get(name, "")))
            self.documents[name] = key[1]

    def run(self, fuse: Fuse = NEVER) -> Counter[str] | None:
        """Index what waits; returns how often each moment came to pass, None where the process died at one."""
        of = self.library
        receiver, sender = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=indexer.run, args=(sender, fuse, of.tenant, of.database, of.objects, of.vectors)
        )
        process.start()
        sender.close()
        with receiver:
            process.join()
            if process.exitcode == -signal.SIGKILL:
                # Its pause is over.
                asyncio.run(
                    of.sql("update document_version set next_attempt_at = null where tenant_id = :tenant")
                )
                return None
            assert process.exitcode == 0, "what it said stands above"
            return Counter(receiver.recv())

    def rows(self) -> list[tuple[Any, ...]]:
        found = asyncio.run(
            self.library.sql(
                "select d.name, v.version, v.state, v.reason, v.chunks, v.pages, v.characters, v.sha256, d.live_version "
                "from document_version v join document d on d.tenant_id = v.tenant_id and d.id = v.document_id "
                "where v.tenant_id = :tenant order by d.name, v.version"
            )
        )
        return [tuple(row) for row in found]

    def made(self) -> dict[str, str]:
        """Hash of each derived object by its name."""

        async def look() -> dict[str, str]:
            found, of = {}, f"{self.library.tenant}/"
            async with open_objects(self.library.objects, self.library.database) as store:
                async for info in store.list(derived.BUCKET, of):
                    data = await store.get(derived.BUCKET, info.key)
                    if "/vectors/" in info.key and info.key.endswith(".json"):
                        data = data.partition(b'"at"')[0]  # when it was made
                    found[info.key.removeprefix(of)] = hashlib.sha256(data).hexdigest()
            return found

        return asyncio.run(look())

    def chunks(self) -> list[tuple[Any, ...]]:
        """Every chunk that the vector server holds, its vector as a hash."""
        index = Vectors(self.library.vectors)
        collection = index.ensure(self.library.model)
        client, _ = index._open()
        names = {document: name for name, document in self.documents.items()}
        rows = client.query(
            collection, filter=f'tenant_id == "{self.library.tenant}"', limit=10_000, consistency_level="Strong",
            output_fields=["doc_id", "doc_version", "chunk_no", "text", "meta", "dense"],
        )  # fmt: skip
        index.close()
        return sorted(
            (
                names[row["doc_id"]],
                row["doc_version"],
                row["chunk_no"],
                row["text"],
                str(sorted(row["meta"].items())),
                hashlib.sha256(repr([round(float(x), 6) for x in row["dense"]]).encode()).hexdigest(),
            )
            for row in rows
        )

    def metered(self) -> dict[str, tuple[str, int]]:
        """Tokens of each object of vectors as they were metered, and how many different events said so."""
        rows = asyncio.run(
            self.library.sql("select value from outbox where tenant_id = :tenant and topic = 'usage.records'")
        )
        events = {event.encode(): event for event in (usage_event(bytes(row[0])) for row in rows)}
        of = {
            derived_id(METER, self.library.tenant, f"{self.library.tenant}/{name}"): name
            for name in self.made()
            if name.endswith(".f32")
        }
        known = [event for event in events.values() if event.id in of]
        times = Counter(event.id for event in known)
        return {of[event.id]: (event.data.quantity, times[event.id]) for event in known}


class Reader(threading.Thread):
    """Searches all the while, as the memory service does."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(name="reader")
        self._shelf, self._end = shelf, threading.Event()
        self.wrong: list[str] = []
        self.seen: set[tuple[str, int, int]] = set()
        """Document, version and how many passages of it were found."""

    def run(self) -> None:
        asyncio.run(self._read())

    def end(self) -> None:
        self._end.set()
        self.join()

    async def _read(self) -> None:
        of = self._shelf.library
        database, vectors = Database(of.database, role="app"), Vectors(of.vectors, of.model)
        search = Search(database, vectors, of.model)
        last: dict[str, int] = {}
        try:
            ended = False
            while not ended:
                ended = self._end.is_set()  # then once more
                for name, document in list(self._shelf.documents.items()):
                    word = name.partition(".")[0]
                    found = await search.find(Question(of.tenant, word, 100, knowledge_bases=[BASE]))
                    versions = Counter(
                        one.hit.version for one in found.passages if one.hit.document == document
                    )
                    if document in last and len(versions) != 1:
                        self.wrong.append(f"{name}: versions {dict(versions)} after {last[document]}")
                    if versions:
                        version = max(versions)
                        if version < last.get(document, 0):
                            self.wrong.append(f"{name}: version {version} after {last[document]}")
                        last[document] = version
                        self.seen.add((name, version, versions[version]))
                await asyncio.sleep(0.1)
        except Exception as error:
            self.wrong.append(repr(error))
        finally:
            search.close()
            vectors.close()
            await database.close()


def check(
    database: DatabaseSettings,
    objects: ObjectSettings,
    vectors: VectorSettings,
    folder: Path,
    moments: list[str],
) -> None:
    calm, storm = shelves = [
        Shelf(asyncio.run(Library.make(database, folder, vectors, objects))) for _ in range(2)
    ]
    pick, survived = random.Random(9), []
    contents = {name: content(name, 0) for name in NAMES}
    for shelf in shelves:
        shelf.upload(contents)
        shelf.run()
    reader = Reader(storm)
    reader.start()
    try:
        for at in range(0, len(moments), KILLS):
            names = pick.sample(NAMES, 2)
            # The last is uploaded again as it was.
            contents |= {name: content(name, 1 + at) for name in names[:-1]}
            for shelf in shelves:
                shelf.upload({name: contents[name] for name in names})
            times = calm.run()
            assert times is not None
            for number, moment in enumerate(moments[at : at + KILLS]):
                assert times[moment], f"{moment} never comes to pass"
                time = pick.randint(1, times[moment]) if number == 0 else 1
                if storm.run((moment, time)) is not None:
                    survived.append(moment)
            assert storm.run() is not None
    finally:
        reader.end()
    assert len(survived) <= len(moments) // 4, survived
    assert reader.wrong == []
    # Of a version that was ever seen, each look found the same number of passages: all.
    assert len({(name, version) for name, version, _ in reader.seen}) == len(reader.seen)
    expected = {(row[0], row[1]): row[4] for row in storm.rows() if row[1] == row[8]}
    assert {(name, version, expected[name, version]) for name, version in expected} <= reader.seen

    # A run that died between the flip and the clean-up leaves what nobody sees.
    reconcile(database, vectors, storm.library.model)
    assert storm.rows() == calm.rows()
    assert {row[2] for row in storm.rows()} == {"indexed"}
    assert storm.made() == calm.made()
    assert storm.chunks() == calm.chunks()
    assert len(storm.chunks()) == sum(expected.values())
    assert storm.metered() == calm.metered()
    assert {times for _, times in storm.metered().values()} == {1}


def shuffled(part: int) -> list[str]:
    """Half of all moments; those of a batch that nobody has begun first, because a second try makes nothing anew."""
    found = list(indexer.MOMENTS)
    random.Random(4).shuffle(found)
    fresh = [moment for moment in found if moment.strip("<>") in {"put", "enqueue"}]
    rest = [moment for moment in found if moment not in fresh]
    half = len(found) // KILLS
    first, second = [*fresh, *rest[: half - len(fresh)]], rest[half - len(fresh) :]
    pairs = list(zip(first, second, strict=True))[part::2]
    return [moment for pair in pairs for moment in pair]


@pytest.mark.parametrize("part", [0, 1])
def test_kills_change_nothing(
    postgres: DatabaseSettings, milvus_lite: VectorSettings, tmp_path: Path, part: int
) -> None:
    objects = ObjectSettings(objects_url=(tmp_path / "objects").as_uri())
    check(postgres, objects, milvus_lite, tmp_path, shuffled(part))


def test_kills_change_nothing_on_minio_and_an_older_milvus(
    postgres15: DatabaseSettings, minio: ObjectSettings, milvus: VectorSettings, tmp_path: Path
) -> None:
    objects = minio.model_copy(update={"objects_bucket_prefix": "indexing-"})
    moments = ["put>", "<upsert", "<take", "upsert>", "count>", "<delete"]
    check(postgres15, objects, milvus, tmp_path, moments)
