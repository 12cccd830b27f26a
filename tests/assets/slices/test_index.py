"""The identity index against a plain dictionary, with keys that agree in their first eight bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.slices.entries import ENTRY
from assets.slices.index import Array, IdentityIndex, Winners
from assets.slices.merging import PIECE
from assets.slices.runs import DamagedError, sections

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
    assert [asked[row] for row in found.rows] == sorted(known)
    for position, pair in enumerate(sorted(known)):
        assert (found.slice[position], found.content[position]) == known[pair]


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
    (tmp_path / "run-000000000002-9.bin.tmp").write_bytes(b"half")
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(2, winners({(1, 2): 3}))
        check(index, {(1, 1): (1, 1), (2, 2): (1, 2), (1, 2): (2, 3)})


def numbered(numbers: Array) -> tuple[Array, Array]:
    """Identities over the whole width of a key, as hashes are; four share one."""
    return (numbers // 4).astype(np.uint64) << np.uint64(54), (numbers % 4).astype(np.uint64)


def slice_of(numbers: Array) -> Winners:
    return Winners(*numbered(numbers), numbers, np.zeros(len(numbers), np.int32), numbers)


@pytest.mark.parametrize("piece", [1, 7, PIECE])
def test_runs_stay_few_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """In whatever pieces they are merged."""
    monkeypatch.setattr("assets.slices.merging.PIECE", piece)
    pairs = np.random.default_rng(7).permutation(2_000)
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        for number in range(1, 101):
            index.add(number, slice_of(pairs[20 * (number - 1) : 20 * number]))
    # 100 is 144 with a base of eight.
    assert sorted(int(path.stem.rpartition("-")[2]) // 20 for path in tmp_path.glob("run-*")) == [1] * 4 + [
        8
    ] * 4 + [64]
    again = IdentityIndex(tmp_path, "one")
    with again.locked():
        asked = np.arange(2_400)
        found = again.probe(*numbered(asked))
        assert found.rows.tolist() == found.content.tolist() == asked[:2_000].tolist()


def test_a_hundred_identities_may_begin_with_the_same_eight_bytes(tmp_path: Path) -> None:
    low = np.arange(200, dtype=np.uint64)
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        for number, some in enumerate((low[:100:2], low[1:100:2]), 1):
            index.add(
                number,
                Winners(
                    some * np.uint64(0),
                    some,
                    some.astype(np.int64),
                    np.zeros(50, np.int32),
                    some.astype(np.int64),
                ),
            )
        found = index.probe(low * np.uint64(0), low)
        assert found.rows.tolist() == found.content.tolist() == list(range(100))
        assert found.slice.tolist() == [1, 2] * 50


@pytest.mark.parametrize("left", ["older", "other", "torn"])
def test_an_index_that_cannot_be_read_starts_anew(tmp_path: Path, left: str) -> None:
    """What an older version left, in runs of numpy's format; a format that only seems to be this one; a torn run."""
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, winners({(1, 1): 1}))
    manifest, [run] = json.loads((tmp_path / "manifest.json").read_text()), tmp_path.glob("run-*")
    if left == "older":
        run.unlink()
        np.save(tmp_path / "run-000000000001-1.npy", np.array([[1], [0]], np.uint64))
        (tmp_path / "run-000000000001-1.marks").write_bytes(b"\0\1")
        manifest["runs"] = [["run-000000000001-1.npy", 1]]
        del manifest["format"]
    elif left == "other":
        manifest["format"] = 1
    else:
        run.write_bytes(run.read_bytes()[:-8])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert IdentityIndex.as_it_is(tmp_path, "one") is None
    again = IdentityIndex(tmp_path, "one")
    with again.locked():
        assert (again.slice, len(again)) == (0, 0)
        assert {path.name for path in tmp_path.iterdir()} == {"lock"}
        again.add(1, winners({(1, 1): 1}))
        check(again, {(1, 1): (1, 1)})


def nine_slices(folder: Path) -> None:
    index = IdentityIndex(folder, "one")
    with index.locked():
        for number in range(index.slice + 1, 10):
            index.add(number, slice_of(np.arange(20 * (number - 1), 20 * number)))


SLICES = "import sys, pathlib, tests.assets.slices.test_index as t; t.nine_slices(pathlib.Path(sys.argv[1]))"


@pytest.mark.parametrize("reached", [1, 4, 15, 16])
def test_a_process_that_dies_in_a_slice_leaves_those_before(tmp_path: Path, reached: int) -> None:
    """Behind the entries (odd) or the run (even) of the first slice, the second, and the eighth, which merges."""
    command = [sys.executable, "-c", SLICES, str(tmp_path)]
    armed = {**os.environ, "HEADRACE_CRASH_AT": f"indexing:{reached}"}
    assert subprocess.run(command, env=armed, check=False).returncode == -signal.SIGKILL
    reader, whole = IdentityIndex.as_it_is(tmp_path, "one"), (reached - 1) // 2
    assert (reader.slice if reader else 0) == whole
    if reader:
        assert reader.probe(*numbered(np.arange(200))).content.tolist() == list(range(20 * whole))
    nine_slices(tmp_path)
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        assert (index.slice, len(index)) == (9, 180)
        assert index.probe(*numbered(np.arange(200))).content.tolist() == list(range(180))
    assert len(list(tmp_path.glob("run-*"))) == 2


def flip(path: Path, bit: int) -> None:
    """One bit of a file, counted from its beginning."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("section", ["filter", "fences", "keys", "ordinals"])
def test_a_bit_that_flipped_in_a_run_shows_when_it_is_merged(tmp_path: Path, section: str) -> None:
    """In one that the eighth slice merges, and in one that the sixteenth does."""
    for run, slices in (("run-000000000009-20.bin", 15), ("run-000000000003-20.bin", 7)):
        lengths = dict(zip(("filter", "fences", "keys", "ordinals"), sections(20), strict=True))
        start = sum(list(lengths.values())[: list(lengths).index(section)])
        for bit in range(64 * start, 64 * (start + lengths[section]), 97):
            folder = tmp_path / f"{run}-{bit}"
            index = IdentityIndex(folder, "one")
            with index.locked():
                for number in range(1, slices + 1):
                    index.add(number, slice_of(np.arange(20 * (number - 1), 20 * number)))
            flip(folder / run, bit)
            with pytest.raises(DamagedError, match=f"which reaches to slice {slices + 1}"), index.locked():
                index.add(slices + 1, slice_of(np.arange(20 * slices, 20 * slices + 20)))
            assert [path.name for path in folder.iterdir()] == ["lock"]
            nine_slices(folder)
            again = IdentityIndex.as_it_is(folder, "one")
            assert again is not None
            assert again.probe(*numbered(np.arange(200))).content.tolist() == list(range(180))


def test_an_entry_is_believed_only_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever bit flips, and where it became zeros."""
    nine_slices(tmp_path)
    path = tmp_path / "entries.bin"
    size = ENTRY.itemsize
    whole, asked = path.read_bytes(), numbered(np.arange(200))
    for many in (0, 1000):
        monkeypatch.setattr("assets.slices.entries.MANY", many)
        for bit in range(8 * size):
            flip(path, 8 * size * 77 + bit)
            reader = IdentityIndex.as_it_is(tmp_path, "one")
            assert reader is not None
            with pytest.raises(DamagedError, match=r"damaged in entries\.bin"):
                reader.probe(*asked)
            path.write_bytes(whole)
    path.write_bytes(whole[: size * 77] + bytes(size) + whole[size * 78 :])
    index = IdentityIndex(tmp_path, "one")
    with pytest.raises(DamagedError, match="`headrace replay run`"), index.locked():
        index.probe(*asked)
    assert [left.name for left in tmp_path.iterdir()] == ["lock"]


def test_many_hits_are_what_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read through a mapping and one by one."""
    nine_slices(tmp_path)
    for many in (0, 1000):
        monkeypatch.setattr("assets.slices.entries.MANY", many)
        index = IdentityIndex.as_it_is(tmp_path, "one")
        assert index is not None
        found = index.probe(*numbered(np.arange(200)))
        assert found.rows.tolist() == found.offset.tolist() == list(range(180))


def test_a_reader_goes_on_with_what_it_opened(tmp_path: Path) -> None:
    """While the owner merges its runs, or makes the index anew for another table."""
    index = IdentityIndex(tmp_path, "one")
    with index.locked():
        index.add(1, winners({(1, 1): 1, (2, 2): 2}))
    reader = IdentityIndex.as_it_is(tmp_path, "one")
    assert reader is not None
    for number in range(2, 10):
        with index.locked():
            index.add(number, winners({(3, number): number}))
    with IdentityIndex(tmp_path, "two").locked():
        check(reader, {(1, 1): (1, 1), (2, 2): (1, 2)})
