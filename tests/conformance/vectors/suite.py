"""What every vector server must do for us. A server's test module subclasses `VectorSuite`."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core.embedding.hashing import HashModel
from core.ids import new_id
from core.knowledge.terms import terms
from core.settings import VectorSettings
from core.vectors import (
    Chunk,
    Hit,
    LexicalUnsupportedError,
    ModelMismatchError,
    Vectors,
    VectorsError,
    VectorsUnavailableError,
    chunk_id,
)
from deploy.component import Component
from tests.servers import kill, start, stop, wait_for

WORDS = "river bridge lantern harbour copper meadow signal orchard granite velvet compass thunder".split()  # noqa: SIM905
TENANTS = 50
SHARED = [f"the {a} by the {b}" for a in WORDS[:5] for b in WORDS[5:7]]


class OtherModel(HashModel):
    """A model whose vectors must not meet those of the first."""

    digest = "f" * 64
    dimensions = 16


MODEL = HashModel()


def chunk(
    tenant: str,
    document: str,
    number: int,
    text: str,
    *,
    version: int = 1,
    base: str = "kb_1",
    user: str = "",
) -> Chunk:
    return Chunk(
        id=chunk_id(tenant, base, document, version, number, text),
        document=document,
        version=version,
        number=number,
        text=text,
        terms=terms(text),
        vector=MODEL.passages([text])[0].tolist(),
        start=number,
        end=number + len(text),
        knowledge_base=base,
        user=user,
        page=number + 1,
        headings=("Title", text[:5]),
    )


def places(hits: Sequence[Hit]) -> list[tuple[str, int, int]]:
    return [(hit.document, hit.version, hit.number) for hit in hits]


class VectorSuite:
    """Subclasses give the fixture `vector_settings` and say whether the server has word search.

    `own_server`: one of its own for a test, and how it is reached.
    """

    words: bool

    def own_server(self, folder: Path) -> tuple[Component, VectorSettings]:
        raise NotImplementedError

    @pytest.fixture
    def vectors(self, vector_settings: VectorSettings) -> Iterator[Vectors]:
        vectors = Vectors(vector_settings)
        vectors.ensure(MODEL)
        yield vectors
        vectors.close()

    @pytest.fixture
    def tenant(self) -> str:
        return new_id("org")

    def search(
        self, vectors: Vectors, tenant: str, query: str, limit: int = 100, **more: object
    ) -> list[list[Hit]]:
        found = [vectors.dense(tenant, MODEL.query(query).tolist(), limit, **more)]  # type: ignore[arg-type]
        if self.words:
            found.append(vectors.lexical(tenant, terms(query), limit, **more))  # type: ignore[arg-type]
        return found

    def test_written_found_replaced_counted_deleted(self, vectors: Vectors, tenant: str) -> None:
        chunks = [chunk(tenant, "doc_1", number, text) for number, text in enumerate(SHARED)]
        vectors.upsert(tenant, chunks)
        vectors.upsert(tenant, [*chunks[:3], chunks[0]])
        vectors.upsert(tenant, [chunk(tenant, "doc_1", 0, SHARED[0], version=2)])
        counts = [vectors.count(tenant), vectors.count(tenant, "doc_1", 1), vectors.count(tenant, "doc_1", 2)]
        assert counts == [11, 10, 1]
        for hits in self.search(vectors, tenant, SHARED[2], 1):
            (hit,) = hits
            assert (hit.id, hit.text, hit.page) == (chunks[2].id, SHARED[2], 3)
            assert (hit.start, hit.end) == (2, 2 + len(SHARED[2]))
            assert (hit.headings, hit.knowledge_base, hit.user) == (("Title", SHARED[2][:5]), "kb_1", "")
            assert hit.score > 0
        vectors.delete(tenant, "doc_1", 1)
        assert [vectors.count(tenant), vectors.count(tenant, "doc_1", 1)] == [1, 0]
        for hits in self.search(vectors, tenant, SHARED[0]):
            assert places(hits) == [("doc_1", 2, 0)]
        vectors.delete(tenant, "doc_1")
        assert vectors.count(tenant) == 0

    def test_the_nearest_are_those_that_arithmetic_says(self, vectors: Vectors, tenant: str) -> None:
        generator = random.Random(7)
        texts = sorted({" ".join(generator.choices(WORDS, k=6)) for _ in range(300)})
        vectors.upsert(tenant, [chunk(tenant, f"doc_{n:03}", n, text) for n, text in enumerate(texts)])
        assert vectors.count(tenant) == len(texts)
        matrix = MODEL.passages(texts)
        found = expected = 0
        for query in texts[::20]:
            scores = matrix @ MODEL.query(query)
            hits = vectors.dense(tenant, MODEL.query(query).tolist(), 10)
            assert [round(hit.score, 4) for hit in hits] == [
                round(scores[hit.number].item(), 4) for hit in hits
            ]
            tenth = np.sort(scores)[-10] - 1e-5
            found += sum(1 for hit in hits if scores[hit.number] >= tenth)
            expected += 10
        assert found / expected >= 0.99

    def test_a_tenant_among_others_finds_its_nearest_in_what_the_server_has_indexed(
        self, vectors: Vectors, tenant: str
    ) -> None:
        generator = np.random.default_rng(7)
        sizes = {f"{tenant}-{size}": size for size in (10, 100, 400, 2000)}
        matrices = {}
        for name, size in sizes.items():
            found = generator.normal(size=(size, MODEL.dimensions)) + generator.normal(size=MODEL.dimensions)
            matrices[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
            vectors.upsert(
                name,
                [
                    replace(chunk(name, f"doc_{n}", n, f"{n}"), vector=vector.tolist())
                    for n, vector in enumerate(matrices[name])
                ],
            )
        flush(vectors)
        assert {name: vectors.count(name) for name in sizes} == sizes
        met = asked = 0
        for name, matrix in matrices.items():
            for query in matrix[::97] + 0.02 * generator.normal(size=matrix[::97].shape):
                nearest = set(np.argsort(-(matrix @ query))[:10].tolist())
                hits = vectors.dense(name, query.tolist(), 10)
                met += len(nearest & {hit.number for hit in hits})
                asked += len(nearest)
        assert met / asked >= 0.99

    def test_a_text_is_kept_whole_up_to_its_limit(self, vectors: Vectors, tenant: str) -> None:
        longest = "\u6f22" * 21_845
        vectors.upsert(tenant, [chunk(tenant, "doc", 0, longest)])
        assert vectors.count(tenant) == 1
        (hit,) = vectors.dense(tenant, MODEL.query("x").tolist(), 1)
        assert hit.text == longest
        with pytest.raises(ValueError, match="chunk 1 of doc is longer than 65535 bytes"):
            vectors.upsert(tenant, [chunk(tenant, "doc", 1, longest + "x")])

    def test_words_or_an_honest_refusal(self, vectors: Vectors, tenant: str) -> None:
        texts = ["混合检索很好用", "Milvus stores vectors", "she was running through meadows", "ＡＰＩ keys"]
        vectors.upsert(tenant, [chunk(tenant, "doc", n, text) for n, text in enumerate(texts)])
        assert vectors.count(tenant) == 4
        assert vectors.has_words == self.words
        if not self.words:
            with pytest.raises(LexicalUnsupportedError, match="no word search"):
                vectors.lexical(tenant, ["x"], 5)
            return
        for query, number in (
            ("检索", 0),
            ("MILVUS 混合", 0),
            ("runs in the meadow", 2),
            ("api", 3),
            ("vector", 1),
        ):
            assert number in [hit.number for hit in vectors.lexical(tenant, terms(query), 2)], query
        scores = [hit.score for hit in vectors.lexical(tenant, terms("检索 很好 milvus"), 5)]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] > 0
        assert vectors.lexical(tenant, terms("and the"), 5) == []

    def test_knowledge_bases_and_memories_are_apart(self, vectors: Vectors, tenant: str) -> None:
        text = "copper lantern"
        vectors.upsert(
            tenant,
            [
                chunk(tenant, "doc_a", 0, text, base="kb_a"),
                chunk(tenant, "doc_b", 0, text, base="kb_b"),
                chunk(tenant, "mem_u", 0, text, base="", user="usr_u"),
                chunk(tenant, "mem_v", 0, text, base="", user="usr_v"),
            ],
        )
        assert vectors.count(tenant) == 4
        for bases, user, expected in (
            (None, "", {"doc_a", "doc_b"}),
            (["kb_a"], "", {"doc_a"}),
            (["kb_a", "kb_b", "kb_c"], "", {"doc_a", "doc_b"}),
            (["kb_c"], "", set()),
            (None, "usr_u", {"doc_a", "doc_b", "mem_u"}),
            ([], "usr_u", {"mem_u"}),
            (["kb_b"], "usr_v", {"doc_b", "mem_v"}),
        ):
            for hits in self.search(vectors, tenant, text, knowledge_bases=bases, user=user):
                assert {hit.document for hit in hits} == expected, (bases, user)
        with pytest.raises(ValueError, match="knowledge base or a user"):
            vectors.dense(tenant, MODEL.query(text).tolist(), 5, [])

    def test_no_foreign_row_whatever_a_value_says(self, vectors: Vectors) -> None:
        run = new_id("x")
        tenants = [f"{run}-{number}" for number in range(TENANTS)]
        hostile = list(_hostile(tenants[0]))
        assert len(hostile) >= 2000
        for number, tenant in enumerate(tenants):
            vectors.upsert(
                tenant, [chunk(tenant, f"doc-{number}", n, text) for n, text in enumerate(SHARED[:4])]
            )
        assert [vectors.count(tenant) for tenant in tenants] == [4] * TENANTS
        for number, tenant in enumerate(tenants):
            for hits in self.search(vectors, tenant, SHARED[0]):
                assert {hit.document for hit in hits} == {f"doc-{number}"}
        query = MODEL.query(SHARED[0]).tolist()
        for at in range(0, len(hostile), 50):
            own = tenants[1 + at // 50 % (TENANTS - 1)]
            assert vectors.dense(own, query, 10, hostile[at : at + 50]) == []
            if self.words:
                assert vectors.lexical(own, terms(SHARED[0]), 10, hostile[at : at + 50]) == []
        for value in hostile:
            assert vectors.dense(value, query, 10) == [], value
        for value in hostile[::17]:
            assert vectors.dense(tenants[1], query, 10, [], user=value) == [], value
        for value in hostile[::67]:
            assert vectors.count(tenants[1], value) == 0, value
            vectors.delete(tenants[1], value)
            vectors.delete(value, "doc-0")
        assert [vectors.count(tenant) for tenant in tenants] == [4] * TENANTS

    def test_a_hostile_name_is_a_tenant_like_any_other(self, vectors: Vectors, tenant: str) -> None:
        names = [f"{tenant}{tail}" for tail in ('" or 1 == 1', "\\", "'", "\u200b", "\uff02", " ", "~")]
        for number, name in enumerate(names):
            vectors.upsert(name, [chunk(name, f"d'{number}\"", 0, SHARED[0], base='k"\\')])
        for number, name in enumerate(names):
            assert vectors.count(name) == 1
            for hits in self.search(vectors, name, SHARED[0], knowledge_bases=['k"\\']):
                assert places(hits) == [(f"d'{number}\"", 1, 0)]

    def test_without_a_tenant_nothing_is_asked(self, vectors: Vectors) -> None:
        query = MODEL.query("x").tolist()
        for call in (
            lambda: vectors.dense("", query, 5),
            lambda: vectors.lexical("", ["x"], 5),
            lambda: vectors.count(""),
            lambda: vectors.delete("", "doc"),
            lambda: vectors.upsert("", [chunk("t", "d", 0, "x")]),
            lambda: vectors.count(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValueError, match="needs a tenant"):
                call()
        with pytest.raises(ValueError, match="is missing"):
            vectors.delete("org_1", "")

    def test_writers_and_readers_at_once(self, vectors: Vectors, tenant: str) -> None:
        errors: list[BaseException] = []

        def write(number: int) -> None:
            try:
                for round_ in range(8):
                    vectors.upsert(tenant, [chunk(tenant, f"w{number}", round_, SHARED[round_])])
                    vectors.upsert(tenant, [chunk(tenant, f"gone{number}", 0, SHARED[round_])])
                    vectors.delete(tenant, f"gone{number}")
                    self.search(vectors, tenant, SHARED[0])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert vectors.count(tenant) == 24

    def test_what_was_acknowledged_outlives_sigkill(self, tmp_path: Path) -> None:
        server, settings = self.own_server(tmp_path)
        process = start(server, tmp_path / "log")
        clients = [Vectors(settings, MODEL, timeout=30) for _ in range(3)]
        vectors = clients[0]
        try:
            # Several processes meet a server without a collection at the same time.
            together(*(partial(one.ensure, MODEL) for one in clients))
            for number, text in enumerate(SHARED):
                vectors.upsert("org_1", [chunk("org_1", "doc", number, text)])
            vectors.delete("org_1", "doc_gone")
            kill(process)
            with pytest.raises(VectorsUnavailableError):
                vectors.count("org_1")
            process = start(server, tmp_path / "log")

            def answers() -> bool:
                try:
                    return vectors.count("org_1") == len(SHARED)
                except VectorsError:
                    return False

            # gRPC tries an address that refused it again only after a pause; a server loads what it has
            wait_for(answers, seconds=120)
            assert places(vectors.dense("org_1", MODEL.query(SHARED[3]).tolist(), 1)) == [("doc", 1, 3)]
        finally:
            for one in clients:
                one.close()
            stop(server, process)

    def test_another_model_has_a_collection_of_its_own(
        self, vectors: Vectors, vector_settings: VectorSettings, tenant: str
    ) -> None:
        """Last: it moves the alias and moves it back."""
        vectors.upsert(tenant, [chunk(tenant, "doc", 0, SHARED[0])])
        assert vectors.count(tenant) == 1
        other, model = Vectors(vector_settings), OtherModel()
        other.ensure(model)
        try:
            small = model.passages([SHARED[0]])[0][:16].tolist()
            with pytest.raises(ModelMismatchError, match="index again"):
                other.dense(tenant, small, 5)
            assert other.activate(model)
            assert not other.activate(model)
            assert other.dense(tenant, small, 5) == []
            other.upsert(tenant, [replace(chunk(tenant, "doc", 0, SHARED[0]), vector=small)])
            assert [other.count(tenant), other.count(tenant, everywhere=True)] == [1, 2]
            other.delete(tenant, "doc")
            assert vectors.count(tenant, everywhere=True) == 0
            vectors.upsert(tenant, [chunk(tenant, "doc", 0, SHARED[0])])
            assert vectors.count(tenant) == 1
            vectors.forget_others()
            assert other.count(tenant) == 0, "what searches read is not dropped"
            vectors.activate(MODEL)
            assert places(vectors.dense(tenant, MODEL.query(SHARED[0]).tolist(), 5)) == [("doc", 1, 0)]
            vectors.forget_others()
            with pytest.raises(VectorsError):
                other.count(tenant)
            assert vectors.count(tenant) == 1
        finally:
            vectors.activate(MODEL)
            other.close()


def together(*calls: Callable[[], object]) -> None:
    """Run the calls at the same time; raises what one of them raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        gate = threading.Barrier(len(calls))

        def run(call: Callable[[], object]) -> object:
            gate.wait()
            return call()

        for done in [pool.submit(run, call) for call in calls]:
            done.result()


def flush(vectors: Vectors) -> None:
    """Make the server build its index over what it has: small fresh data are searched without one."""
    client, _ = vectors._open()
    name = vectors.ensure(MODEL)
    client.flush(name)
    wait_for(lambda: client.describe_index(name, "dense")["pending_index_rows"] == 0)


def _hostile(victim: str) -> Iterator[str]:
    """Texts that would mean something to a filter, if they were part of one."""
    quotes = ["'", '"', "\\'", '\\"', "\u2019", "\u201c", "\uff07", "\uff02", "`", "\\u0022", "\\x22", ""]
    phrases = [
        "{q} or 1==1", "{q} or 1 == 1 or {q}{q} == {q}", "{q} or tenant_id == {q}{v}", "{v}{q} or {q}{v}{q} == {q}{v}",
        "{q}] or tenant_id in [{q}{v}{q}]", "{q}) or (tenant_id == {q}{v}{q})", "{q} || true", "{q} or tenant_id like {q}%",
        "{q} or not (tenant_id == {q}x{q})", "{q} OR id != {q}{q}", "{q} or exists meta", "{q}\n or 1==1", "{q}\t||1==1",
    ]  # fmt: skip
    disguises: list[Callable[[str], str]] = [
        lambda text: text,
        str.upper,
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace(" ", "\u200b"),
        lambda text: text.replace("=", "\uff1d"),
        lambda text: text.replace("o", "\u043e"),
        lambda text: text + "\\",
        lambda text: "\\" + text,
        lambda text: text + "--",
        lambda text: text + "#",
        lambda text: "\u202e" + text,
        lambda text: text + "\u0301",
        lambda text: "%" + text + "%",
    ]
    for quote in quotes:
        for phrase in phrases:
            for disguise in disguises:
                yield disguise(phrase.format(q=quote, v=victim))
