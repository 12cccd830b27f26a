"""Figures in the README come from the benches alone."""

import pytest

from tests.bench.readme import record

RESULT = {
    "bench": "launcher-stack",
    "arguments": "--profile stack",
    "measured_at": "2026-01-02T03:04:05Z",
    "machine": {"cpus": 2, "memory_mb": 8192, "python": "3.11.7", "system": "Linux"},
    "ratios": {"warm_start_of_aim": 0.5},
    "figures": {"warm_up_seconds": 15.0, "healed": {"postgres": 0.7, "valkey": 0.3}},
}


def test_figures_replace_what_stood_between_the_markers() -> None:
    text = "before\n<!-- figures -->\n<!-- /figures -->\nafter\n"
    old = record(
        text,
        [
            {**RESULT, "ratios": {"old": 7}},
            {**RESULT, "bench": "launcher", "arguments": "", "ratios": {"other profile": 9}},
            {**RESULT, "bench": "slices", "arguments": "--slices 200", "ratios": {"kept": 8}},
        ],
    )
    once = record(old, [RESULT])
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert '`make bench NAME=slices ARGS="--slices 200"`' in once, "a table says how it is had again"
    assert "| ratio: other profile | 9 |" in once
    assert "| ratio: kept | 8 |" in once, "the tables of benches that did not run stay"
    assert '`make bench NAME=launcher ARGS="--profile stack"`, 2026-01-02, 2 cores, 8 GB' in once
    assert "| ratio: warm start of aim | 0.5 |" in once
    assert "| healed | postgres 0.7, valkey 0.3 |" in once
    assert record(once, [RESULT]) == once
    again = record(once, [{**RESULT, "bench": "slices", "arguments": "", "ratios": {"new": 1}}])
    assert "kept" not in again


def test_a_readme_without_markers_is_not_touched() -> None:
    with pytest.raises(ValueError, match="markers"):
        record("no markers", [RESULT])
