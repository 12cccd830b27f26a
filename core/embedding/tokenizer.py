"""The tokenizer of multilingual-e5-small (SentencePiece unigram; Kudo 2018), with places in the text it was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.embedding.weights import Weights

_UNIGRAM, _UNKNOWN, _CONTROL = 1, 2, 3
"""A model's type and two of a piece's, in the protobuf."""
_DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPED_SPACES = 3, 4, 5
"""Fields of its normalizer: a space in front, the removal of spaces, spaces written as U+2581."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` and, for each, [start, end) in code points of the text; parallel."""

    ids: Array
    spans: Array


class Tokenizer:
    """Loads 250,000 pieces: half a second and 60 MB, so make one a process."""

    def __init__(self, weights: Weights) -> None:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415

        self._normal = weights.normal()
        self._changed = frozenset(map(chr, self._normal))
        # One thread: whoever has many texts calls from threads of his own.
        self._engine = SentencePieceProcessor.from_proto(model(weights), num_threads=1)

    def encode(self, text: str) -> Encoded:
        """Tokens without the model's ends."""
        ready, origin = self._normalise(text)
        # A word begins with a space, the first one too; where the text has none, it is given one.
        given = 0 if not ready or ready[0] == " " else 1
        found = self._engine.encode(" " * given + ready, return_type="offset_mapping")
        spans = np.array(found["offsets"], np.int64).reshape(-1, 2) - given
        if given and len(spans):
            # A token that is only that space stands at the first character.
            spans[0] = 0, max(1, spans[0, 1])
        return Encoded(np.array(found["ids"], np.int64), _back(spans, origin))

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        return [self.encode(text) for text in texts]

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


def _back(spans: Array, origin: Array) -> Array:
    """Spans in the normalised text as spans in the text itself; empty where nothing stands for a token."""
    if not len(origin):
        return np.zeros_like(spans)
    found = np.stack([origin[np.minimum(spans[:, 0], len(origin) - 1)], origin[spans[:, 1] - 1] + 1], axis=1)
    found[spans[:, 0] == spans[:, 1]] = 0
    return found


def model(weights: Weights) -> bytes:
    """The pieces as a `ModelProto` of SentencePiece (sentencepiece_model.proto), which changes no text by itself."""
    shape = weights.shape
    kinds = {shape.unknown: _UNKNOWN, shape.begin: _CONTROL, shape.pad: _CONTROL, shape.end: _CONTROL}
    # One growing array: 250,000 small objects would leave 30 MB of holes behind.
    found = bytearray()
    for number, (piece, score) in enumerate(weights.pieces()):
        said = _field(1, piece) + b"\x15" + score
        found += _field(1, said + _number(3, kinds[number]) if number in kinds else said)
    ids = (shape.unknown, shape.begin, shape.end, shape.pad)
    trainer = _number(3, _UNIGRAM) + b"".join(_number(40 + at, each) for at, each in enumerate(ids))
    normalizer = _field(1, b"identity") + b"".join(
        _number(*each) for each in ((_DUMMY_PREFIX, 0), (_EXTRA_SPACES, 0), (_ESCAPED_SPACES, 1))
    )
    return bytes(found + _field(2, trainer) + _field(3, normalizer))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
