"""The tail against a model that recounts everything, through every order of reading and landing."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contracts.usage import Reference, UsageEvent, VoidEvent
from core.decimals import nano
from core.eventlog.api import Record
from services.billing.tail import CHUNK, MAX_RECORDS, Tail
from tests.services.billing.conftest import TOPIC, usage_event

TENANT = "org_1"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PARTITIONS = (0, 1, 2)


def event(name: int, quantity: str, hour: int = 0) -> UsageEvent:
    return usage_event(
        TENANT, id=f"evt_{name}", quantity=quantity, time=NOW - timedelta(hours=hour), importid="imp_1"
    )


def record(partition: int, offset: int, value: bytes) -> Record:
    return Record(TOPIC, partition, offset, b"", value, int(NOW.timestamp() * 1000))


def sums(tail: Tail) -> dict[int, int]:
    """Nano units by hour."""
    return {cell.key[1]: cell.nano for cell in tail.cells(TENANT)}


def drain(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


class Model:
    """The topic as lists, and the same question answered by counting again from the start.

    Landing goes by slices, each slice partition by partition: the first record of an identity in
    that order is the one that counts.
    """

    def __init__(self, topic: dict[int, list[UsageEvent | None]]) -> None:
        self.log = topic
        self.landed = dict.fromkeys(PARTITIONS, 0)
        self.identities: set[bytes] = set()
        self.cells: Counter[int] = Counter()

    def land(self, targets: dict[int, int]) -> None:
        for partition in PARTITIONS:
            for at in range(self.landed[partition], targets[partition]):
                found = self.log[partition][at]
                if found is not None and found.identity not in self.identities:
                    self.identities.add(found.identity)
                    self.cells[int(found.time.timestamp())] += nano(found.data.quantity)
            self.landed[partition] = targets[partition]

    def behind(self, positions: dict[int, int]) -> tuple[int, int]:
        """Least and most nano units that records between landed and positions may add: an identity
        that came several times may land with any of its quantities."""
        found: dict[bytes, list[int]] = {}
        for partition in PARTITIONS:
            for one in self.log[partition][self.landed[partition] : positions[partition]]:
                if one is not None and one.identity not in self.identities:
                    found.setdefault(one.identity, []).append(nano(one.data.quantity))
        return sum(map(min, found.values())), sum(map(max, found.values()))


events = st.builds(
    event, st.integers(0, 8), st.sampled_from(["1", "2.5", "9999999999999.5"]), st.integers(0, 2)
)
topics = st.fixed_dictionaries(
    {
        partition: st.lists(st.one_of(events, events, st.none()), min_size=2, max_size=12)
        for partition in PARTITIONS
    }
)
actions = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "land", "land", "jump"]),
        st.sampled_from(PARTITIONS),
        st.integers(1, 5),
    ),
    min_size=10,
    max_size=50,
)


@settings(max_examples=400, deadline=None)
@given(topics, actions, st.sampled_from([2, 3, 1024]), st.booleans())
def test_cells_and_sums_are_what_a_recount_gives(
    topic: dict[int, list[UsageEvent | None]], steps: list[tuple[str, int, int]], chunk: int, jumps: bool
) -> None:
    model, tail, jumped = Model(topic), Tail(chunk_records=chunk), False
    tail.reset(dict.fromkeys(PARTITIONS, 0), dict.fromkeys(PARTITIONS, 0))
    for kind, partition, count in steps:
        read = tail.positions[partition]
        if kind == "read":
            part = topic[partition][read : read + count]
            tail.add(
                partition,
                [
                    record(partition, read + n, b"{" if one is None else one.encode())
                    for n, one in enumerate(part)
                ],
            )
        else:
            written = len(topic[partition]) if kind == "jump" and jumps else read
            target = min(written, model.landed[partition] + count)
            jumped = jumped or target > read
            model.land({**model.landed, partition: target})
            drain(tail.advance(model.landed))
        least, most = model.behind(tail.positions)
        # Identities that landed unread are unknown: their repetitions count until they land as well.
        assert least <= sum(sums(tail).values())
        assert jumped or sum(sums(tail).values()) <= most
        assert tail.reflected == model.landed
        assert tail.complete
    model.land({partition: len(topic[partition]) for partition in PARTITIONS})
    drain(tail.advance(model.landed))
    assert sums(tail) == {}, "everything landed: nothing is left behind the cells"
    assert tail.room == MAX_RECORDS


def complete(tail: Tail) -> bool:
    return tail.complete


def filled(tail: Tail, partition: int, count: int, first: int = 0) -> None:
    start = tail.positions[partition]
    tail.add(
        partition,
        [record(partition, start + n, event(first + n, "1").encode()) for n in range(count)],
    )


def test_the_bound_counts_what_is_live_and_history_gives_way() -> None:
    tail = Tail(max_records=3000)
    tail.reset({0: 0}, {0: 0})
    filled(tail, 0, 3000)
    assert (tail.room, tail.held) == (0, 3000)
    drain(tail.advance({0: 2500}))
    assert (tail.room, tail.held) == (2500, 3000)
    filled(tail, 0, 2500, first=3000)
    assert (tail.room, sum(sums(tail).values())) == (0, 3000 * 10**9)
    assert tail.held <= 3000 + CHUNK


def test_identities_in_front_of_the_watermark_are_known_from_the_start() -> None:
    tail = Tail()
    tail.reset({0: 4, 1: 0}, {0: 2, 1: 0})
    assert not complete(tail), "records between the start and the watermark are not read yet"
    filled(tail, 0, 2, first=100)
    assert complete(tail)
    assert sums(tail) == {}
    filled(tail, 0, 2, first=101)
    assert sum(sums(tail).values()) == 10**9, "101 was in history, 102 is new"


def test_a_repetition_that_landed_before_its_first_record_takes_it_out() -> None:
    tail = Tail()
    tail.reset({0: 0, 1: 5}, {0: 0, 1: 4})
    filled(tail, 0, 1, first=7)
    assert sum(sums(tail).values()) == 10**9
    filled(tail, 1, 1, first=7)
    assert sums(tail) == {}


def test_records_that_were_gone_before_they_were_read_make_it_incomplete_until_cells_have_them() -> None:
    tail = Tail()
    tail.reset({0: 3}, {0: 10})
    filled(tail, 0, 2)
    assert not complete(tail)
    drain(tail.advance({0: 9}))
    assert not complete(tail)
    drain(tail.advance({0: 11}))
    assert complete(tail)
    assert sum(sums(tail).values()) == 10**9


def test_a_watermark_beyond_what_was_read_moves_the_position() -> None:
    tail = Tail()
    tail.reset({0: 0}, {0: 0})
    filled(tail, 0, 3)
    drain(tail.advance({0: 50}))
    assert (tail.positions, sums(tail)) == ({0: 50}, {})
    filled(tail, 0, 2, first=10)
    assert sum(sums(tail).values()) == 2 * 10**9


def test_records_that_do_not_continue_are_refused() -> None:
    tail = Tail()
    tail.reset({0: 0}, {0: 0})
    with pytest.raises(ValueError, match="does not continue at 0"):
        tail.add(0, [record(0, 1, b"{}")])


def test_a_reset_ends_an_advance_that_is_under_way() -> None:
    tail = Tail()
    tail.reset({0: 0}, {0: 0})
    filled(tail, 0, 3000)
    steps = tail.advance({0: 3000})
    next(steps)
    tail.reset({0: 0}, {0: 0})
    drain(steps)
    filled(tail, 0, 1)
    assert (tail.reflected, sum(sums(tail).values())) == ({0: 0}, 10**9)


def void(name: int) -> bytes:
    return VoidEvent(
        id=f"void_{name}", source="test", time=NOW, tenant=TENANT, type="headrace.usage.void.v1", specversion="1.0",
        data=Reference("test", f"evt_{name}"),
    ).encode()  # fmt: skip


QUANTITIES = ["1", "2.5", "9999999999999.5"]
pieces = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=4, max_size=16)
paces = st.lists(st.tuples(st.sampled_from(["read", "land"]), st.integers(1, 4)), min_size=8, max_size=30)


@settings(max_examples=300, deadline=None)
@given(pieces, paces, st.sampled_from([1, 2, 3, 1024]))
def test_a_void_counts_with_the_sign_turned_until_cells_contain_it(
    log: list[tuple[bool, int]], steps: list[tuple[str, int]], chunk: int
) -> None:
    """One partition of events and voids of them, some again, some of what never was."""
    tail, landed, late = Tail(chunk_records=chunk), 0, set[int]()
    tail.reset({0: 0}, {0: 0})
    first = {(is_void, name): at for at, (is_void, name) in reversed(list(enumerate(log)))}

    def units(name: int) -> int:
        return nano(QUANTITIES[name % 3])

    def recount(end: int) -> int:
        """What all records before `end` come to, as the slices will count them."""
        total = 0
        for at, (is_void, name) in enumerate(log[:end]):
            if at == first[is_void, name]:
                total += 0 if is_void else units(name)
                # A void in front of its event is not counted; one that is sent again may be.
            if (
                is_void
                and first.get((False, name), at) < at
                and not any(one == (True, name) for one in log[first[False, name] : at])
            ):
                total -= units(name)
        return total

    for kind, count in [*steps, ("read", len(log)), ("land", len(log))]:
        read = tail.positions[0]
        if kind == "read":
            for at in range(read, min(len(log), read + count)):
                is_void, name = log[at]
                value = void(name) if is_void else event(name, QUANTITIES[name % 3]).encode()
                tail.add(0, [record(0, at, value)])
                if is_void and (first.get((False, name), at) < landed or first[True, name] != at):
                    late.add(at)
        else:
            landed = min(read, landed + count)
            drain(tail.advance({0: landed}))
        shown = recount(landed) + sum(sums(tail).values())
        late = {at for at in late if at >= landed}
        assert shown - recount(tail.positions[0]) in {0, *_subsets([units(log[at][1]) for at in late])}
    assert sums(tail) == {}


def _subsets(values: list[int]) -> set[int]:
    found = {0}
    for value in values:
        found |= {one + value for one in found}
    return found


def test_a_void_of_an_event_in_the_sums_takes_it_out_at_once() -> None:
    tail = Tail()
    tail.reset({0: 0, 1: 0}, {0: 0, 1: 0})
    tail.add(0, [record(0, 0, event(1, "2.5").encode()), record(0, 1, event(2, "1").encode())])
    tail.add(1, [record(1, 0, void(1)), record(1, 1, void(1)), record(1, 2, void(7))])
    assert sum(sums(tail).values()) == 10**9
    drain(tail.advance({0: 1, 1: 0}))
    assert sum(sums(tail).values()) == 10**9 - 2_500_000_000, "cells have the event, and not its void"
    drain(tail.advance({0: 1, 1: 3}))
    assert sum(sums(tail).values()) == 10**9
    drain(tail.advance({0: 2, 1: 3}))
    assert sums(tail) == {}
