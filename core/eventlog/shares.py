"""Who should hold which partition of a group: even, and with as few changes of hands as possible."""

import uuid
from collections.abc import Mapping, Sequence

from core.eventlog.api import TopicPartition


def fair_shares(
    held: Mapping[TopicPartition, uuid.UUID | None], members: Mapping[uuid.UUID, Sequence[str]]
) -> dict[TopicPartition, uuid.UUID]:
    """The member each partition should belong to.

    Args:
        held: every partition of the group with its holder now, None where it is free.
        members: the living members and the topics each subscribes to; every topic has a subscriber.

    Returns:
        A member per partition. No two members subscribed to a topic differ by more than one of its
        partitions, and no holder loses one that it may keep under that rule.
    """
    shares: dict[TopicPartition, uuid.UUID] = {}
    load = dict.fromkeys(members, 0)
    for topic in sorted({topic for topic, _ in held}):
        partitions = sorted(key for key in held if key[0] == topic)
        readers = [member for member, topics in members.items() if topic in topics]
        counts = dict.fromkeys(readers, 0)
        for key in partitions:
            holder = held[key]
            if holder in counts:
                counts[holder] += 1
        least, extra = divmod(len(partitions), len(readers))
        # The odd partitions stay with those who hold more already, else go to the least loaded.
        order = sorted(readers, key=lambda member: (-min(counts[member], least + 1), load[member], member))
        room = {member: least + (1 if place < extra else 0) for place, member in enumerate(order)}
        free: list[TopicPartition] = []
        for key in partitions:
            holder = held[key]
            if holder in room and room[holder] > 0:
                shares[key] = holder
                room[holder] -= 1
            else:
                free.append(key)
        takers = [member for member in order for _ in range(room[member])]
        shares.update(zip(free, takers, strict=True))
        for key in partitions:
            load[shares[key]] += 1
    return shares
