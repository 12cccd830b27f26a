"""Which model the settings name, and the tests' own one."""

from pathlib import Path

import numpy as np
import pytest

from core.embedding import open_model
from core.embedding.hashing import HashModel
from core.settings import VectorSettings


def test_a_model_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'e6'; use `e5` or `hash`"):
        open_model(VectorSettings(embedding_model="e6"), tmp_path)


def test_opening_loads_nothing(tmp_path: Path) -> None:
    assert open_model(VectorSettings(), tmp_path).dimensions == 384
    assert list(tmp_path.iterdir()) == []


def test_words_make_the_vectors_of_the_hash_model() -> None:
    model = HashModel()
    same, other = model.passages(["Grease the bearings", "water is cold"])
    assert np.array_equal(model.query("grease THE bearings"), same)
    assert abs(float(model.query("grease the bearings") @ other)) < 0.5
    assert model.passages(["", "x"]).shape == (2, 384)
    assert np.allclose(np.linalg.norm(model.passages(["", "x y z"]), axis=1), 1)
    assert model.offsets("ab 水c").tolist() == [[0, 2], [3, 4], [4, 5]]
