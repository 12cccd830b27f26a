"""Runs find what is in them and nothing else, with keys that are equal, far apart and at both ends."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.slices import merging
from assets.slices.filters import Question, words
from assets.slices.merging import Array, Fresh, order_of, write_run
from assets.slices.runs import SPACING, Run, open_run

KEY = st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1), st.integers(2**64 - 5, 2**64 - 1))
PARTS = st.lists(st.lists(KEY, min_size=1, max_size=3 * SPACING), min_size=1, max_size=5)


def written(path: Path, parts: list[Array]) -> Run:
    """Ordinals say of which part a key is, and where it stood there."""
    fresh = [
        Fresh(np.sort(keys), np.arange(len(keys), dtype=np.uint64) + 1000 * n) for n, keys in enumerate(parts)
    ]
    opened: list[Run | Fresh] = []
    for number, part in enumerate(fresh):
        with (path / str(number)).open("w+b") as file:
            sums = write_run(file, [part])
        opened.append(open_run(path / str(number), 0, len(part), sums) if number % 2 else part)
    with (path / "whole").open("w+b") as file:
        sums = write_run(file, opened)
    return open_run(path / "whole", 1, sum(map(len, parts)), sums)


def found(run: Run, keys: Array) -> dict[int, list[int]]:
    rows, ordinals = run.find(Question(keys))
    result: dict[int, list[int]] = {}
    for row, ordinal in zip(rows.tolist(), ordinals.tolist(), strict=True):
        result.setdefault(int(keys[row]), []).append(ordinal)
    return {key: sorted(each) for key, each in result.items()}


@pytest.mark.parametrize(
    ("piece", "block", "parts_of_a_write"), [(1 << 15, 1 << 20, 1000), (4, 64, 2), (1, 8, 1)]
)
def test_merged_runs_have_each_key_as_often_as_their_parts(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    piece: int, block: int, parts_of_a_write: int,
) -> None:  # fmt: skip
    for name, value in (("PIECE", piece), ("BLOCK", block), ("_PARTS", parts_of_a_write)):
        monkeypatch.setattr(merging, name, value)

    @settings(max_examples=30, deadline=None)
    @given(PARTS)
    def check(lists: list[list[int]]) -> None:
        parts = [np.array(each, np.uint64) for each in lists]
        run = written(tmp_path_factory.mktemp("run"), parts)
        expected: dict[int, list[int]] = {}
        for number, keys in enumerate(parts):
            for position, key in enumerate(np.sort(keys).tolist()):
                expected.setdefault(key, []).append(1000 * number + position)
        assert run.keys.tolist() == sorted(key for each in lists for key in each)
        here = np.array(sorted(expected), np.uint64)
        assert found(run, here) == expected
        beside = np.unique(np.concatenate((here - np.uint64(1), here + np.uint64(1))))
        assert found(run, beside) == {key: expected[key] for key in beside.tolist() if key in expected}

    check()


def test_what_passes_the_filter_is_searched(tmp_path: Path) -> None:
    """With a filter that everything passes the answers are the same; with an empty one there are none."""
    keys, others = np.sort(np.random.default_rng(8).integers(0, 2**64, (2, 5_000), np.uint64, endpoint=False))
    run = written(tmp_path, [keys])
    asked, path = np.sort(np.concatenate((keys, others))), tmp_path / "whole"
    before = found(run, asked)
    assert sorted(before) == keys.tolist()
    size = 8 * words(len(keys))
    for filled, expected in ((b"\xff", before), (b"\0", {})):
        with path.open("r+b") as file:
            file.write(filled * size)
        assert found(open_run(path, 0, len(keys), run.sums), asked) == expected


@pytest.mark.parametrize("change", [-8, -1, 1, 8])
def test_a_run_of_another_length_is_none(tmp_path: Path, change: int) -> None:
    written(tmp_path, [np.arange(100, dtype=np.uint64)])
    path = tmp_path / "whole"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + change)
    with pytest.raises(ValueError, match="bytes"):
        open_run(path, 0, 100, (0, 0, 0, 0))


@settings(max_examples=200, deadline=None)
@given(st.lists(KEY, max_size=200), st.booleans())
def test_order_is_stable(keys: list[int], is_sorted: bool) -> None:
    values = np.array(sorted(keys) if is_sorted else keys, np.uint64)
    assert order_of(values).tolist() == np.argsort(values, kind="stable").tolist()
