"""Embedding models: what turns a text into a vector.

model = open_model(VectorSettings(), DataSettings().state_dir)
vectors = model.passages(["…"])
"""

from pathlib import Path

from core.embedding.api import EmbeddingModel
from core.settings import VectorSettings

__all__ = ["EmbeddingModel", "open_model"]


def open_model(settings: VectorSettings, state_dir: Path) -> EmbeddingModel:
    """The model that the settings name. Cheap: weights are loaded when the first text comes.

    Args:
        state_dir: where what is built from the installed weights is kept; rebuilt where it is missing.

    Raises:
        ValueError: for a model that does not exist.
    """
    # Imported when chosen: the tests' model needs neither weights nor an engine.
    if settings.embedding_model == "e5":
        from core.embedding.e5 import E5Model  # noqa: PLC0415

        return E5Model(state_dir / "embedding")
    if settings.embedding_model == "hash":
        from core.embedding.hashing import HashModel  # noqa: PLC0415

        return HashModel()
    raise ValueError(f"HEADRACE_EMBEDDING_MODEL is {settings.embedding_model!r}; use `e5` or `hash`")
