"""Filters never lose a key, and little else passes."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.slices.filters import PATTERNS, Array, Builder, Question, words

KEYS = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 40), st.just(2**64 - 1)), min_size=1)


def made(pieces: list[Array]) -> Array:
    length = words(sum(map(len, pieces)))
    builder = Builder(length)
    found = np.concatenate([*(builder.add(each) for each in pieces), builder.rest()])
    assert len(found) == length
    return found


@settings(max_examples=100, deadline=None)
@given(KEYS, st.lists(st.integers(0, 30), max_size=5))
def test_no_key_is_lost_however_it_came(keys: list[int], cuts: list[int]) -> None:
    ordered = np.sort(np.array(keys, np.uint64))
    pieces = [each for each in np.split(ordered, sorted(min(cut, len(ordered)) for cut in cuts)) if len(each)]
    filter_ = made(pieces)
    assert np.array_equal(filter_, made([ordered]))
    assert Question(ordered).passing(filter_).tolist() == list(range(len(ordered)))


def test_few_of_the_others_pass() -> None:
    random = np.random.default_rng(5)
    keys, others = np.sort(random.integers(0, 2**64, (2, 100_000), np.uint64, endpoint=False))
    assert 0.001 < len(Question(others).passing(made([keys]))) / len(others) < 0.0025


def test_word_and_pattern_are_of_different_bits() -> None:
    """A key of the same word and pattern passes and is for the run to tell; of the same word or pattern alone, few do."""
    keys = np.sort(np.random.default_rng(6).integers(0, 2**64, 50_000, np.uint64, endpoint=False))
    filter_ = made([keys])
    shares = {
        name: len(Question(np.sort(keys ^ np.uint64(bits))).passing(filter_)) / len(keys)
        for name, bits in (("both", 1 << 20), ("word", 1), ("pattern", 1 << 63))
    }
    assert shares["both"] == 1
    assert max(shares["word"], shares["pattern"]) < 0.05


def test_filters_that_lie_in_files_are_read_as_they_were_written() -> None:
    """Another number here needs another `FORMAT` of the index."""
    digest = hashlib.sha256(
        made([np.arange(1000, dtype=np.uint64) * np.uint64(2**54 + 12_345)]).tobytes()
    ).hexdigest()
    assert (len(PATTERNS), digest[:16]) == (16384, "c60d5b0674d0cb79")
