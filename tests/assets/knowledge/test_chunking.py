"""A passage is the text from its start to its end, always, and the model reads all of it."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.knowledge.chunking import MOST, divide, embedded_text
from assets.knowledge.parsers.extract import CODE, HEADING, PARAGRAPH, TABLE, Extract, Writer
from core.embedding import EmbeddingModel, open_model
from core.embedding.hashing import HashModel
from core.settings import VectorSettings


@pytest.fixture(scope="module")
def e5(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    return open_model(VectorSettings(), tmp_path_factory.mktemp("embedding"))


def check(extract: Extract, model: EmbeddingModel) -> None:
    passages = divide(extract, model)
    assert [passage.number for passage in passages] == list(range(len(passages)))
    assert all(one.end <= other.start for one, other in pairwise(passages))
    bodies = [extract.text[passage.start : passage.end] for passage in passages]
    assert all(body and body == body.strip() for body in bodies)
    assert "".join("".join(bodies).split()) == "".join(extract.text.split())
    if passages:
        assert max(model.tokens([embedded_text(extract.text, passage) for passage in passages])) <= MOST


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("ab .。!?\n,，水门\u00a0\u3000🜚e\u0301"), max_size=400),
            st.sampled_from([HEADING, PARAGRAPH, TABLE, CODE]),
            st.integers(0, 3),
        ),
        max_size=12,
    ),
    st.integers(1, 40),
)
def test_nothing_is_lost_doubled_or_moved(blocks: list[tuple[str, str, int]], repeated: int) -> None:
    writer = Writer()
    for number, (body, kind, page) in enumerate(blocks):
        writer.page = page
        writer.add(body * repeated if number == 0 else body, kind, level=1 + page)
    check(writer.finish(), HashModel())


@pytest.mark.parametrize(
    "body",
    [
        "水渠的闸门在冬天要关上" * 300,
        "word " * 3000,
        "Ünïcödé-" * 900,
        "句子到此为止。" * 500,
        "a" * 9000,
        "🜚" * 3000,
    ],
    ids=[
        "run of Chinese",
        "no sentence ends",
        "accents",
        "Chinese sentences",
        "one word",
        "unknown to the model",
    ],
)
def test_the_model_reads_all_of_each_passage(e5: EmbeddingModel, body: str) -> None:
    writer = Writer()
    writer.add("标题 " * 60, HEADING, 1)
    writer.add(body)
    check(writer.finish(), e5)


def test_structure_decides_where_a_passage_begins() -> None:
    writer = Writer()
    for page in (1, 2):
        writer.page = page
        for chapter in ("Gates", "Turbines"):
            writer.add(f"{chapter} {page}", HEADING, 1)
            writer.add("Oil", HEADING, 2)
            writer.add("Each sentence says something about water and wheels. " * 12)
    extract = writer.finish()
    passages = divide(extract, HashModel())
    assert [(one.page, one.headings) for one in passages] == [
        (1, ("Gates 1", "Oil")),
        (1, ("Turbines 1", "Oil")),
        (2, ("Gates 2", "Oil")),
        (2, ("Turbines 2", "Oil")),
    ]


def test_long_text_is_cut_at_the_end_of_a_sentence() -> None:
    writer = Writer()
    writer.add("水渠的闸门在冬天要关上，否则冰会把它压坏！" * 60)
    extract = writer.finish()
    ends = [extract.text[passage.end - 1] for passage in divide(extract, HashModel())]
    assert len(ends) > 3
    assert set(ends) == {"！"}


def test_headings_are_embedded_along_once(tmp_path: Path) -> None:
    writer = Writer()
    writer.add("Winter", HEADING, 1)
    writer.add("Close the gate.")
    extract = writer.finish()
    (passage,) = divide(extract, HashModel())
    assert passage.headings == ("Winter",)
    assert embedded_text(extract.text, passage) == "Winter\n\nClose the gate."
