"""Dead letters of the queues: look at them, send them again, drop them.

A letter that is sent again starts over with its first attempt and a new life; it keeps its id, so
that what it had already done is not done twice.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from core.clock import now, rfc3339
from core.messaging.queue_outbox import FIRST_SEEN
from core.messaging.queues import ATTEMPT, DIED, REASON, Message, message_of
from core.queue.api import DEFAULT_EXCHANGE, Headers, NewMessage, UnknownQueueError, WorkQueue
from core.topology import dead_letters_of

LIMIT: Final = 10_000
"""Most letters of one queue that a call looks at; fewer where their bodies are large (`BROWSE_BYTES`)."""
_EXPIRED: Final = "expired: nobody took it in its time"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    queue: str
    """Where it could not get done."""
    id: str
    tenant: str
    reason: str
    attempts: int
    first_seen: datetime
    died_at: datetime | None
    """None where the server itself put it here when its time was over."""
    size: int
    """Bytes of the body."""


async def letters(
    queue: WorkQueue, names: Collection[str], limit: int, *, tenant: str | None
) -> list[DeadLetter]:
    """Up to `limit` dead letters of each of these queues; a queue that does not exist has none.

    Args:
        tenant: whose; None for everybody's, which only the platform's own people may see.

    Raises: QueueUnavailableError.
    """
    found: list[DeadLetter] = []
    for name in names:
        try:
            async with queue.browse(dead_letters_of(name), limit if tenant is None else LIMIT) as (_, held):
                theirs = [letter for one in held if _is_of(letter := _letter(message_of(name, one)), tenant)]
        except UnknownQueueError:
            continue
        found += theirs[:limit]
    return found


async def redrive(queue: WorkQueue, name: str, ids: Collection[str] | None, *, tenant: str | None) -> int:
    """Send dead letters of `name` again, all where no ids are given; returns how many.

    Raises: UnknownQueueError, QueueUnavailableError (what was not sent stays).
    """
    sent = 0
    async with queue.browse(dead_letters_of(name), LIMIT) as (consumer, deliveries):
        for delivery in deliveries:
            message = message_of(name, delivery)
            if (ids is None or message.id in ids) and _is_of(message, tenant):
                await queue.publish(
                    [NewMessage(DEFAULT_EXCHANGE, name, message.id, message.body, _fresh(message))]
                )
                await consumer.ack(delivery)
                sent += 1
    return sent


async def drop(queue: WorkQueue, name: str, ids: Collection[str] | None, *, tenant: str | None) -> int:
    """Delete dead letters of `name` for good; returns how many. Raises: as `redrive`."""
    dropped = 0
    async with queue.browse(dead_letters_of(name), LIMIT) as (consumer, deliveries):
        for delivery in deliveries:
            message = message_of(name, delivery)
            if (ids is None or message.id in ids) and _is_of(message, tenant):
                dropped += await consumer.ack(delivery)
    return dropped


def _is_of(letter: DeadLetter | Message, tenant: str | None) -> bool:
    return tenant is None or letter.tenant == tenant


def _letter(message: Message) -> DeadLetter:
    values = dict(message.headers)
    died = values.get(DIED)
    # Without the time of our own burial the reason is at most that of an earlier attempt.
    return DeadLetter(
        queue=message.queue,
        id=message.id,
        tenant=message.tenant,
        reason=values.get(REASON, b"").decode("utf-8", "replace") if died else _EXPIRED,
        attempts=message.attempt if died else message.attempt - 1,
        first_seen=message.first_seen,
        died_at=datetime.fromisoformat(died.decode()) if died else None,
        size=len(message.body),
    )


def _fresh(message: Message) -> Headers:
    gone = {ATTEMPT, REASON, DIED, FIRST_SEEN}
    kept = tuple(pair for pair in message.headers if pair[0] not in gone)
    return (*kept, (FIRST_SEEN, rfc3339(now()).encode()))
