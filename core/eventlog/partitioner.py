"""Which partition a key belongs to: the same on every adapter and in every client.

murmur2 as Apache Kafka's Java client computes it (librdkafka: `murmur2_random`). Both adapters use
this function instead of their client's own, so a key keeps its partition when an installation
moves from tables to Kafka.
"""

from functools import lru_cache
from typing import Final

_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_WORD: Final = 0xFFFFFFFF


@lru_cache(maxsize=65536)
def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with Kafka's seed, unsigned."""
    length = len(data)
    value = _SEED ^ length
    words = length >> 2
    for index in range(0, words << 2, 4):
        word = int.from_bytes(data[index : index + 4], "little") * _MULTIPLIER & _WORD
        word = (word ^ (word >> 24)) * _MULTIPLIER & _WORD
        value = (value * _MULTIPLIER & _WORD) ^ word
    tail = data[words << 2 :]
    if tail:
        value = (value ^ int.from_bytes(tail, "little")) * _MULTIPLIER & _WORD
    value = (value ^ (value >> 13)) * _MULTIPLIER & _WORD
    return value ^ (value >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """Partition of a key in a topic of that many partitions. The empty key is a key like any other."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
