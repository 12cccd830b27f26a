"""The shape of what the relay answers."""

from typing import Final, Literal

from typing_extensions import TypedDict

from core.clock import rfc3339
from core.messaging.dead_letters import DeadLetter

SEPARATOR: Final = ":"
"""No queue has it in its name."""


class DeadLetterShown(TypedDict):
    """A message that its queue could not get done. Its content is not shown."""

    id: str
    """What the routes call it: queue and message."""
    object: Literal["dead_letter"]
    queue: str
    message_id: str
    tenant: str
    """`-` where it belongs to no organisation."""
    reason: str
    attempts: int
    first_seen: str
    died_at: str | None
    """None where its time in the queue was over before anybody took it."""
    size: int
    """Bytes of its content."""


class DeadLetters(TypedDict):
    """Oldest first in each queue. There is no cursor: what is redriven or discarded makes room for more."""

    object: Literal["list"]
    data: list[DeadLetterShown]
    has_more: bool


class Settled(TypedDict):
    id: str
    object: Literal["dead_letter"]
    outcome: Literal["redriven", "discarded"]


def shown(letter: DeadLetter) -> DeadLetterShown:
    return {
        "id": id_of(letter),
        "object": "dead_letter",
        "queue": letter.queue,
        "message_id": letter.id,
        "tenant": letter.tenant,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first_seen": rfc3339(letter.first_seen),
        "died_at": None if letter.died_at is None else rfc3339(letter.died_at),
        "size": letter.size,
    }


def id_of(letter: DeadLetter) -> str:
    return f"{letter.queue}{SEPARATOR}{letter.id}"
