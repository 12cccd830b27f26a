"""Cuts passages into sentences and ranks them by the words they share with a question."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.knowledge.terms import terms

_LONGEST: Final = 600
"""Characters of a quoted sentence; what has no end in sight (a table, a log) is cut here."""
_END: Final = re.compile(
    r"(?:(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s|$)|[。！？；]+[”’」』）]*|\n[ \t]*\n\s*|\n(?=[ \t]*(?:[-*•#|]|\d+[.)])\s))"
)
_MARKUP: Final = re.compile(r"^(?:[ \t]*(?:[-*•>]|#{1,6}|\d+[.)])[ \t]+)+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a tool's result."""

    marker: int
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    marker: int
    text: str
    """As it stands in the passage, line breaks shown as spaces."""
    score: float


def split(text: str) -> list[str]:
    """Sentences in order, each as it stands in the text but for list marks and line breaks."""
    found, start = [], 0
    for match in [*_END.finditer(text), None]:
        end = len(text) if match is None else match.end()
        piece = " ".join(_MARKUP.sub("", text[start:end].strip()).split())
        start = end
        if piece:
            found.append(piece[:_LONGEST])
    return found


def best(question: str, passages: Sequence[Passage], limit: int = 3) -> list[Sentence]:
    """Up to `limit` sentences, best first; none where there is no passage.

    A sentence counts the question's words in it, each by its rarity among the sentences, damped by its
    length, and a little for the rank of its passage. Where no word is shared (a question in another
    language than the passages) the first sentence of the first passage stands for it.
    """
    pieces = [
        (rank, passage.marker, piece)
        for rank, passage in enumerate(passages)
        for piece in split(passage.text)
    ]
    if not pieces:
        return []
    wanted = set(terms(question))
    words = [terms(piece) for _, _, piece in pieces]
    frequency = Counter(term for one in words for term in set(one) & wanted)
    seen: dict[str, Sentence] = {}
    for (rank, marker, piece), own in zip(pieces, words, strict=True):
        shared = set(own) & wanted
        weight = sum(math.log(1 + len(pieces) / frequency[term]) for term in shared)
        score = weight / math.sqrt(4 + len(own)) * (1 - 0.02 * min(rank, 10))
        if score > 0 and (piece not in seen or seen[piece].score < score):
            seen[piece] = Sentence(marker, piece, score)
    if not seen:
        _, marker, piece = pieces[0]
        return [Sentence(marker, piece, 0.0)]
    ranked = sorted(seen.values(), key=lambda one: (-one.score, one.marker, one.text))
    return [one for one in ranked[:limit] if one.score >= 0.5 * ranked[0].score]
