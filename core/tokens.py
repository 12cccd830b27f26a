"""Tokens of a model's reply as usage: each token in exactly one meter and one set of dimensions.

Providers report classes that contain each other (cached input is input); prices are for what is left of
each. Some prices depend on how long the whole request was: a request above the bound pays the higher
price for every token. So usage carries the largest bound of `BOUNDS` that the request was above, as the
dimension `context`. It does so whether a price depends on it or not: history can then be priced anew by
a list that has such a tier only later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

BOUNDS: Final = (32_000, 100_000, 128_000, 200_000, 256_000, 272_000, 512_000)
"""Lengths of requests, in input tokens, above which published price lists charge more."""

INPUT: Final = "llm.tokens.input"
CACHED: Final = "llm.tokens.cached"
CACHE_WRITE: Final = "llm.tokens.cache_write"
OUTPUT: Final = "llm.tokens.output"
REQUESTS: Final = "llm.requests"
EMBEDDED: Final = "embedding.tokens"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider reported for one call; nothing is estimated."""

    input: int = 0
    """All of the input."""
    cached: int = 0
    """Of the input: read from the provider's cache."""
    cache_written: int = 0
    """Of the input: written into it."""
    output: int = 0
    input_audio: int = 0
    """Of the input, cached or not."""
    cached_audio: int = 0
    """Of what was cached."""
    output_audio: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A quantity of one meter; `dimensions` are those that the tokens give."""

    meter: str
    quantity: int
    dimensions: Mapping[str, str]

    @property
    def name(self) -> tuple[str, ...]:
        """What tells it from the other pieces of the call, for ids that the same work gives again."""
        modality = self.dimensions.get("modality")
        return (self.meter, modality) if modality else (self.meter,)


def context(bound: int) -> str:
    """The dimension's value for requests above a bound."""
    return f"over_{bound}"


def pieces(reply: Reply, *, embedding: bool = False) -> list[Piece]:
    """The usage of one call, without what is zero. A provider that reports more of a class than of what
    contains it gets no negative rest."""
    reached = [bound for bound in BOUNDS if reply.input > bound]
    text = {"context": context(reached[-1])} if reached else {}
    audio = {**text, "modality": "audio"}
    if embedding:
        found = [Piece(EMBEDDED, reply.input, text)]
    else:
        fresh_audio = max(0, reply.input_audio - reply.cached_audio)
        fresh = reply.input - reply.cached - reply.cache_written - fresh_audio
        found = [
            Piece(INPUT, fresh, text),
            Piece(INPUT, fresh_audio, audio),
            Piece(CACHED, reply.cached - reply.cached_audio, text),
            Piece(CACHED, reply.cached_audio, audio),
            Piece(CACHE_WRITE, reply.cache_written, text),
            Piece(OUTPUT, reply.output - reply.output_audio, text),
            Piece(OUTPUT, reply.output_audio, audio),
        ]
    return [piece for piece in [*found, Piece(REQUESTS, 1, {})] if piece.quantity > 0]
