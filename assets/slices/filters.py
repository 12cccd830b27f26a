"""Pattern-blocked Bloom filters (Putze, Sanders and Singler 2007): which of many keys a set may have, by one look each.

A filter is an array of words. The upper half of a key names its word, the lower bits one of `PATTERNS`, all of whose
bits are set there for a key of the set. The two are independent, so of what the set does not have 0.2 per cent
passes. Keys are hashes: others are found too, but more passes.

A changed constant is another format: filters lie in files, and one read otherwise would lose keys without a word.
"""

import numpy as np
import numpy.typing as npt

KEYS_A_WORD = 3
"""So 21 bits a key."""
_BITS = 6
"""Of a pattern: the fewest pass with five to eight of 64."""
_PATTERNS = 1 << 14
"""128 kB, which stay in the cache of a core. With a quarter of them a third more passes."""
_HALF = np.uint64(32)

Array = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def _patterns() -> Array:
    """Words with six bits, some with fewer: bits 0 to 5, 6 to 11 … of a mixed number (SplitMix64) say which."""
    state = np.arange(1, _PATTERNS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    words = np.zeros(_PATTERNS, np.uint64)
    for bit in range(_BITS):
        words |= np.uint64(1) << ((state >> np.uint64(6 * bit)) & np.uint64(63))
    return words


PATTERNS = _patterns()


def words(keys: int) -> int:
    """Length of a filter for so many keys."""
    return -(-keys // KEYS_A_WORD)


class Builder:
    """Makes a filter of sorted keys that come piece by piece."""

    def __init__(self, length: int) -> None:
        self._length, self._start, self._held = length, 0, np.uint64(0)

    def add(self, keys: Array) -> Array:
        """The words that are complete with these keys, after those that were before."""
        place = _places(keys >> _HALF, self._length)
        starts = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
        found = np.zeros(int(place[-1]) - self._start + 1, np.uint64)
        found[place[starts] - self._start] = np.bitwise_or.reduceat(_pattern(keys), starts)
        found[0] |= self._held
        self._start, self._held = int(place[-1]), found[-1]
        return found[:-1]

    def rest(self) -> Array:
        """The other words."""
        found = np.zeros(self._length - self._start, np.uint64)
        found[0] = self._held
        return found


class Question:
    """Keys, prepared once for many filters."""

    def __init__(self, keys: Array) -> None:
        self.keys = keys
        self._upper, self._pattern = keys >> _HALF, _pattern(keys)
        # For the answer of each filter: new memory would cost more than the answer does.
        self._place, self._word = np.empty_like(keys), np.empty_like(keys)

    def passing(self, filter_: Array) -> Rows:
        """Rows of the keys that the filter's set may have: all that it has, and a few more."""
        place = _places(self._upper, len(filter_), self._place)
        found = filter_.take(place, out=self._word, mode="clip")  # never clips; "raise" would copy
        found &= self._pattern
        return np.flatnonzero(found == self._pattern)


def _places(upper: Array, length: int, out: Array | None = None) -> Rows:
    """In the order of keys, so that sorted ones go through the filter once."""
    place = np.multiply(upper, np.uint64(length), out=out)
    place >>= _HALF
    return place.view(np.int64)


def _pattern(keys: Array) -> Array:
    return PATTERNS.take((keys & np.uint64(_PATTERNS - 1)).view(np.int64))
