"""Where a reader of a channel stands.

A run counts its own events: (epoch, seq). A conversation stands in one partition of the log: (epoch
of the topic, offset of the last event seen). A user's conversations are spread over all partitions:
a vector of next offsets.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, Self

Kind = Literal["run", "conversation", "user"]
_KINDS: Final[tuple[Kind, ...]] = ("run", "conversation", "user")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OWN: Final = re.compile(r"[A-Za-z0-9_-]{0,64}/[A-Za-z0-9_-]{1,64}")


def channel_of(name: str) -> tuple[Kind, str]:
    """Kind and id of `run:<id>`, `conversation:<id>` or `user:<tenant>/<id>`.

    Raises:
        ValueError: for any other text.
    """
    kind, _, identity = name.partition(":")
    for known in _KINDS:
        if kind == known and (_OWN if kind == "user" else _ID).fullmatch(identity):
            return known, identity
    raise ValueError("a channel is run:<id>, conversation:<id> or user:<tenant>/<id>")


def topic_epoch(topic_id: str) -> int:
    """What stands for the topic in positions: differs where the topic was made anew (31 bits of a hash)."""
    return int.from_bytes(hashlib.blake2s(topic_id.encode(), digest_size=4).digest()) & 0x7FFF_FFFF


@dataclass(frozen=True, slots=True)
class Vector:
    """Next offset of every partition; its text form is opaque to clients."""

    epoch: int
    offsets: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.epoch:x}." + ".".join(f"{offset:x}" for offset in self.offsets)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: ValueError."""
        if len(text) > 2_000:
            raise ValueError("not a cursor")
        epoch, *offsets = (int(part, 16) for part in text.split("."))
        if not offsets or epoch < 0 or min(offsets) < 0:
            raise ValueError("not a cursor")
        return cls(epoch, tuple(offsets))


@dataclass(frozen=True, slots=True)
class Span:
    """Where the events of one run stand in `agent.events`."""

    partition: int
    first: int
    """Offset of its first event."""
    last: int | None = None
    """Of its terminal event, once that is known."""


After = tuple[int, int] | Vector
"""(epoch, seq) of a run, (topic epoch, offset) of a conversation, or a user's vector."""
