"""Which documents a run takes: pure."""

import json

from assets.knowledge.worklist import MOST, MOST_BYTES, SMALL, Waiting, batch
from sensors.knowledge import Last, ask


def waiting(name: str, size: int = 1000, attempt: int = 0) -> Waiting:
    return Waiting(("org", name, 1), size, attempt, 1.0)


def names(found: list[Waiting]) -> list[str]:
    return [one.key[1] for one in found]


def test_a_batch_is_bounded_by_number_and_bytes() -> None:
    assert len(batch([waiting(str(i)) for i in range(200)], last_large=False)) == MOST
    large = [waiting(str(i), MOST_BYTES // 3) for i in range(9)]
    assert len(batch(large, last_large=False)) == 3
    assert names(batch([waiting("huge", 10 * MOST_BYTES)], last_large=True)) == ["huge"]


def test_sizes_take_turns_where_both_wait() -> None:
    both = [waiting("a"), waiting("L", SMALL + 1), waiting("b")]
    assert names(batch(both, last_large=True)) == ["a", "b"]
    assert names(batch(both, last_large=False)) == ["L"]
    assert names(batch(both[:1], last_large=False)) == ["a"]
    assert names(batch(both[1:2], last_large=True)) == ["L"]
    assert batch([], last_large=True) == []


def test_what_was_tried_before_goes_alone() -> None:
    assert names(batch([waiting("a"), waiting("b", attempt=1), waiting("c")], last_large=True)) == ["a", "c"]
    assert names(batch([waiting("b", attempt=1), waiting("a")], last_large=True)) == ["b"]


def test_each_try_is_asked_for_under_a_key_of_its_own() -> None:
    first, second = (ask([waiting("a", attempt=tried), waiting("b")], 100.0) for tried in (0, 1))
    (request,), (repeated,) = first.run_requests or [], second.run_requests or []
    assert request.run_key == "org:a:1:1:100"
    assert repeated.run_key == "org:a:1:2:100"
    config = request.run_config["ops"]["document_text"]["config"]
    assert config == {"documents": [["org", "a", "1"], ["org", "b", "1"]]}
    assert Last.read(first.cursor) == Last(large=False)
    assert Last.read("{}") == Last.read("broken") == Last.read(json.dumps({"x": 1})) == Last()
