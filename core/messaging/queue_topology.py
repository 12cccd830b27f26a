"""What the queue families of `core.topology` are on a server: exchanges, queues, retry ladder, dead letters.

A failed message is published to the exchange `retry.<pause>`, with the name of its queue as routing
key. The one queue there keeps it for the pause and lets it go to the queue that the key names, so the
whole platform has one retry queue for each step.
"""

from collections.abc import Iterable
from datetime import timedelta

from core.queue.api import BY_ROUTING_KEY, Binding, Exchange, Queue, WorkQueue
from core.topology import QUEUES, QueueFamily, dead_letters_of


def retry_exchange(pause: timedelta) -> str:
    """Where a message goes that shall come again after `pause`."""
    return f"retry.{pause // timedelta(milliseconds=1)}ms"


def declarations(families: Iterable[QueueFamily]) -> tuple[list[Exchange], list[Queue]]:
    """Everything these families need, each once."""
    exchanges: dict[str, Exchange] = {}
    queues: dict[str, Queue] = {}
    for family in families:
        exchanges[family.exchange] = Exchange(family.exchange, family.kind)
        for pause in family.ladder:
            name = retry_exchange(pause)
            exchanges[name] = Exchange(name, "fanout")
            queues[name] = Queue(name, (Binding(name, ""),), ttl=pause, dead_letter=BY_ROUTING_KEY)
        for instance in family.instances or (() if "{" in family.queue else ("",)):
            for queue in queues_of(family, instance):
                queues[queue.name] = queue
    return [*exchanges.values()], [*queues.values()]


def queues_of(family: QueueFamily, instance: str = "") -> tuple[Queue, Queue]:
    """The queue of one instance, and that of its dead letters."""
    name = family.name(instance)
    dead = dead_letters_of(name)
    return (
        Queue(
            name,
            (Binding(family.exchange, family.key(instance)),),
            ttl=family.ttl,
            dead_letter=dead if family.ttl else None,
            single_active=family.single_active,
        ),
        Queue(dead),
    )


async def ensure(queue: WorkQueue, families: Iterable[QueueFamily] = tuple(QUEUES.values())) -> None:
    """Declare everything; safe to repeat. Raises: QueueChangedError, QueueUnavailableError."""
    await queue.declare(*declarations(families))
