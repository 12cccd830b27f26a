"""The tokenizer of multilingual-e5-small (SentencePiece unigram), with places in the text it was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from core.embedding.weights import Weights

SPACE: Final = "\u2581"
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` and, for each, [start, end) in code points of the text; parallel."""

    ids: Array
    spans: Array


class Tokenizer:
    """Loads 250,000 pieces: about a second and 150 MB, so make one a process."""

    def __init__(self, weights: Weights) -> None:
        from tokenizers import Tokenizer as Engine  # noqa: PLC0415
        from tokenizers.models import Unigram  # noqa: PLC0415
        from tokenizers.pre_tokenizers import Metaspace  # noqa: PLC0415

        pieces = weights.pieces()
        self._normal = pieces.normal
        self._changed = frozenset(map(chr, pieces.normal))
        self._engine = Engine(Unigram(pieces.scores, weights.shape.unknown))
        self._engine.pre_tokenizer = Metaspace(SPACE, prepend_scheme="first")

    def encode(self, text: str) -> Encoded:
        """Tokens without the model's ends."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        ready = [self._normalise(text) for text in texts]
        encoded = self._engine.encode_batch([text for text, _ in ready], add_special_tokens=False)
        return [
            Encoded(np.array(one.ids, np.int64), _back(one.offsets, origin))
            for one, (_, origin) in zip(encoded, ready, strict=True)
        ]

    def _normalise(self, text: str) -> tuple[str, Array]:
        """The text as the model reads it, and for each of its characters the place in `text` it comes from."""
        if not self._changed.isdisjoint(text):
            pieces, places, last = [], [], 0
            for at in (i for i, character in enumerate(text) if character in self._changed):
                normal = self._normal[ord(text[at])]
                pieces += [text[last:at], normal]
                places += [np.arange(last, at), np.full(len(normal), at)]
                last = at + 1
            text_, origin = (
                "".join([*pieces, text[last:]]),
                np.concatenate([*places, np.arange(last, len(text))]),
            )
        else:
            text_, origin = text, np.arange(len(text))
        if "  " not in text_:
            return text_, origin
        codes = np.frombuffer(text_.encode("utf-32-le", "surrogatepass"), "<u4")
        kept = np.ones(len(codes), bool)
        kept[1:] = (codes[1:] != ord(" ")) | (codes[:-1] != ord(" "))
        return codes[kept].tobytes().decode("utf-32-le", "surrogatepass"), origin[kept]


def _back(offsets: list[tuple[int, int]], origin: Array) -> Array:
    """Spans in the normalised text as spans in the text itself; empty where nothing stands for a token."""
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    if not len(origin):
        return np.zeros_like(spans)
    found = np.stack([origin[np.minimum(spans[:, 0], len(origin) - 1)], origin[spans[:, 1] - 1] + 1], axis=1)
    found[spans[:, 0] == spans[:, 1]] = 0
    return found
