"""The identity index against a plain dictionary, with keys that agree in their first eight bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.slices.index import Array, IdentityIndex, Winners

PAIRS = st.tuples(st.integers(0, 3), st.integers(0, 5))
"""(high, low): few values, so that most highs are shared."""


def winners(entries: dict[tuple[int, int], int]) -> Winners:
    high = np.array([pair[0] for pair in entries], np.uint64)
    low = np.array([pair[1] for pair in entries], np.uint64)
    content = np.array(list(entries.values()), np.uint64)
    return Winners(high, low, content, np.zeros(len(entries), np.int32), content.astype(np.int64))


def check(index: IdentityIndex, known: dict[tuple[int, int], tuple[int, int]]) -> None:
    asked = sorted({(high, low) for high in range(5) for low in range(7)})
    found = index.probe(
        np.array([pair[0] for pair in asked], np.uint64), np.array([pair[1] for pair in asked], np.uint64)
    )
    for position, pair in enumerate(asked):
        assert bool(found.known[position]) == (pair in known), pair
        if pair in known:
            number, content = known[pair]
            assert (found.slice[position], found.content[position]) == (number, content)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(PAIRS, st.integers(0, 2**64 - 1), max_size=8), max_size=12))
def test_equals_a_dictionary(tmp_path_factory: object, slices: list[dict[tuple[int, int], int]]) -> None:
    folder: Path = tmp_path_factory.mktemp("index")  # type: ignore[attr-defined]
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for number, entries in enumerate(slices, 1):
        new = {pair: content % 2**63 for pair, content in entries.items() if pair not in known}
        index = IdentityIndex(folder, "table")
        with index.locked():
            assert index.slice == number - 1
            check(index, known)
            index.add(number, winners(new))
            known |= {pair: (number, content) for pair, content in new.items()}
            check(index, known)
            assert len(index) == len(known)


def test_another_table_starts_anew(tmp_path: Path) -> None:
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, winners({(1, 1): 1}))
    other = IdentityIndex(tmp_path, "two")
    with other.locked():
        assert (other.slice, len(other)) == (0, 0)
        check(other, {})


def test_what_a_killed_predecessor_left_is_no_entry(tmp_path: Path) -> None:
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, winners({(1, 1): 1, (2, 2): 2}))
    with (tmp_path / "entries.bin").open("ab") as file:
        file.write(b"x" * 77)
    (tmp_path / "run-000000000002-9.npy.tmp").write_bytes(b"half")
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(2, winners({(1, 2): 3}))
        check(index, {(1, 1): (1, 1), (2, 2): (1, 2), (1, 2): (2, 3)})


@pytest.mark.parametrize(
    ("at_once", "marked_from"), [(1, 1), (7, 50), (1_000_000, 1), (1_000_000, 1_000_000)]
)
def test_runs_stay_few_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, marked_from: int
) -> None:
    """Merged piece by piece they are what they are merged at once, with marks and without; many keys are shared by
    several entries."""
    monkeypatch.setattr("assets.slices.index.MERGED_AT_ONCE", at_once)
    monkeypatch.setattr("assets.slices.index.MARKED_FROM", marked_from)

    def pair(numbers: Array) -> tuple[Array, Array]:
        # Over the whole width of a key, as hashes are.
        return (numbers // 4).astype(np.uint64) << np.uint64(54), (numbers % 4).astype(np.uint64)

    random = np.random.default_rng(7)
    pairs = random.permutation(2_000)
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        for number in range(1, 101):
            some = np.sort(pairs[20 * (number - 1) : 20 * number])
            index.add(number, Winners(*pair(some), some, np.zeros(20, np.int32), np.arange(20)))
    runs = {path.stem for path in tmp_path.glob("run-*.npy")}
    marked = {path.stem for path in tmp_path.glob("run-*.marks")}
    assert len(runs) <= 5
    assert marked == {name for name in runs if int(name.rpartition("-")[2]) >= marked_from}
    again = IdentityIndex(tmp_path, "one")
    with again.locked():
        asked = np.arange(2_400)
        found = again.probe(*pair(asked))
        assert found.known.tolist() == [True] * 2_000 + [False] * 400
        assert found.content[:2_000].tolist() == asked[:2_000].tolist()


@pytest.mark.parametrize("length", [None, 0, 1, 3, 4, 100])
def test_a_run_without_its_own_marks_is_searched_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    """Torn or foreign marks would lose entries without a word."""
    monkeypatch.setattr("assets.slices.index.MARKED_FROM", 1)
    keys = np.sort(np.random.default_rng(3).integers(0, 2**64, 9, np.uint64, endpoint=False))
    keys[0], keys[-1] = 0, 2**64 - 1
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, Winners(keys, keys, np.arange(9), np.zeros(9, np.int32), np.arange(9)))
        assert index.probe(keys, keys).known.all()
        assert not index.probe(keys[1:-1] - np.uint64(1), keys[1:-1]).known.any()
    [marks] = tmp_path.glob("run-*.marks")
    if length is None:
        marks.unlink()
    else:
        marks.write_bytes(b"\0" * length)
    again = IdentityIndex(tmp_path, "one")
    with again.locked():
        assert again.probe(keys, keys).known.all()


def test_marks_are_what_decides_where_they_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests with marks are tests of marks: emptied, they hide what the run has."""
    monkeypatch.setattr("assets.slices.index.MARKED_FROM", 1)
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, winners({(1, 1): 1, (2, 2): 2}))
    [marks] = tmp_path.glob("run-*.marks")
    marks.write_bytes(b"\0" * marks.stat().st_size)
    again = IdentityIndex(tmp_path, "one")
    with again.locked():
        check(again, {})
