"""Tokens for word search, made here and not in the server: every server then finds the same.

Servers' own analyzers differ, see a Chinese sentence as one word, and do not stem. Words of Latin and
other alphabets are folded (width, case, accents) and stemmed; scripts written without spaces give
pairs of neighbouring characters. Pairs are spelled in ASCII, because an analyzer that divides text by
Unicode's rules would take them apart again.
"""

import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

# Han, kana, bopomofo, Hangul, and the scripts of South-East Asia: no spaces between words.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3005-\u3007\u3040-\u312f\u3130-\u318f"
    "\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN: Final = re.compile(
    rf"(?P<run>[{_UNSPACED}]+)|(?P<word>[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*)"
)
_LONGEST: Final = 64
"""Characters of a word; what is longer is data, not language."""

STOP_WORDS: Final = frozenset(
    """a about after again all also am an and any are as at be because been before being between both but by can
    could did do does doing down during each few for from further had has have having he her here hers him his how i
    if in into is it its itself just me more most my no nor not now of off on once only or other our ours out over own
    same she should so some such than that the their theirs them then there these they this those through to too
    under until up very was we were what when where which while who whom why will with would you your yours""".split()  # noqa: SIM905
)

_local = threading.local()


def terms(text: str) -> list[str]:
    """Tokens of a passage or a query, in order, with repetitions. Empty where only stop words are in it."""
    return list(_terms(unicodedata.normalize("NFKC", text).casefold()))


def _terms(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        run = match["run"]
        if run is not None:
            yield from _pairs(run)
            continue
        word = match["word"]
        if word not in STOP_WORDS and len(word) <= _LONGEST and (stem := _stem(word)):
            yield stem


def _pairs(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield _spelled(run)
    for index in range(len(run) - 1):
        yield _spelled(run[index : index + 2])


def _spelled(characters: str) -> str:
    return "".join(f"x{ord(character):x}" for character in characters)


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    base = re.split("['’]", word, maxsplit=1)[0] if word.endswith(("'s", "’s")) else re.sub("['’]", "", word)
    if base in STOP_WORDS:
        return ""
    decomposed = unicodedata.normalize("NFD", base)
    if decomposed[0] < "\u0250":
        base = "".join(character for character in decomposed if not unicodedata.combining(character))
    if not base.isascii():
        return base
    stemmer = getattr(_local, "english", None)
    if stemmer is None:
        import snowballstemmer  # noqa: PLC0415 - loads the rules of thirty languages

        stemmer = _local.english = snowballstemmer.stemmer("english")
    return str(stemmer.stemWord(base))
