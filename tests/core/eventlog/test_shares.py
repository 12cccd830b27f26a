"""Partitions are shared evenly, and change hands no more than that needs."""

import uuid

from hypothesis import given
from hypothesis import strategies as some

from core.eventlog.api import TopicPartition
from core.eventlog.shares import fair_shares

MEMBERS = [uuid.UUID(int=n) for n in range(6)]


@some.composite
def groups(draw: some.DrawFn) -> tuple[dict[TopicPartition, uuid.UUID | None], dict[uuid.UUID, list[str]]]:
    members = draw(some.lists(some.sampled_from(MEMBERS), min_size=1, unique=True))
    topics = draw(some.lists(some.sampled_from(["a", "b", "c"]), min_size=1, unique=True))
    subscribed = {m: draw(some.lists(some.sampled_from(topics), min_size=1, unique=True)) for m in members}
    subscribed[members[0]] = topics
    held: dict[TopicPartition, uuid.UUID | None] = {}
    for topic in topics:
        for partition in range(draw(some.integers(min_value=1, max_value=9))):
            # A former holder may be dead by now, or no longer read this topic.
            held[topic, partition] = draw(some.sampled_from([None, *MEMBERS]))
    return held, subscribed


@given(groups())
def test_every_partition_goes_to_a_reader_of_its_topic_in_even_shares(
    group: tuple[dict[TopicPartition, uuid.UUID | None], dict[uuid.UUID, list[str]]],
) -> None:
    held, members = group
    shares = fair_shares(held, members)
    assert shares.keys() == held.keys()
    for topic in {topic for topic, _ in held}:
        counts = {member: 0 for member, topics in members.items() if topic in topics}
        for key, member in shares.items():
            if key[0] == topic:
                counts[member] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


@given(groups())
def test_a_settled_group_stays_as_it_is(
    group: tuple[dict[TopicPartition, uuid.UUID | None], dict[uuid.UUID, list[str]]],
) -> None:
    held, members = group
    settled = fair_shares(held, members)
    assert fair_shares(settled, members) == settled


def test_only_the_surplus_changes_hands_when_a_member_joins() -> None:
    first, second, third = MEMBERS[:3]
    held: dict[TopicPartition, uuid.UUID | None] = {("a", n): first if n < 4 else second for n in range(8)}
    shares = fair_shares(held, {member: ["a"] for member in MEMBERS[:3]})
    moved = [key for key, member in shares.items() if member != held[key]]
    assert len(moved) == 2
    assert {shares[key] for key in moved} == {third}


def test_members_of_different_topics_come_to_the_same_shares() -> None:
    members = {MEMBERS[0]: ["a", "b"], MEMBERS[1]: ["a"], MEMBERS[2]: ["b"]}
    held: dict[TopicPartition, uuid.UUID | None] = {(t, n): None for t in "ab" for n in range(3)}
    assert fair_shares(held, members) == fair_shares(held, dict(reversed(members.items())))
