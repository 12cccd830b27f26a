"""The demo's trace and oracle."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from deploy.demo import oracle, sample


def test_the_sample_is_the_same_everywhere_and_bursty(tmp_path: Path) -> None:
    first = sample.write(tmp_path / "a.csv", count=2000).read_bytes()
    assert sample.write(tmp_path / "b.csv", count=2000).read_bytes() == first
    assert sample.write(tmp_path / "c.csv", seed=1, count=2000).read_bytes() != first
    sizes = sorted(int(line.split(b",")[1]) for line in first.splitlines()[1:])
    assert sizes[-1] > 10 * sizes[len(sizes) // 2]


def test_costs_are_exact() -> None:
    assert oracle.Trace(8819, 18_059_974, 245_896).unrounded == "47.608895"
    assert oracle.decimal_text(Fraction(3)) == "3"
    with pytest.raises(ValueError, match="decimal form"):
        oracle.decimal_text(Fraction(1, 3))


def event(**changes: object) -> bytes:
    base: dict[str, object] = {
        "specversion": "1.0",
        "type": "headrace.usage.v1",
        "id": "1",
        "source": "s",
        "time": "2026-01-01T00:00:00Z",
        "tenant": "org_a",
        "data": {"meter": "llm.tokens.input", "quantity": "5"},
    }
    return json.dumps(base | changes).encode()


def test_replay_gives_each_record_one_fate() -> None:
    received = 1_767_225_600_000  # 2026-01-01
    other = {"meter": "llm.tokens.input", "quantity": "6"}
    records = [
        event(),
        event(),
        event(time="2026-01-01T01:00:00+01:00"),
        event(data=other),
        event(id="2", data={"meter": "llm.tokens.input", "quantity": 5}),
        event(id="3", time="2020-01-01T00:00:00Z"),
        event(id="4", time="2020-01-01T00:00:00Z", importid="imp_1"),
        b"\xff",
        event(tenant="org_b"),
    ]
    fates = oracle.replay([(b"org_a|", value, received) for value in records], "org_a").fates
    assert fates.as_dict() == {"landed": 8, "counted": 2, "duplicates": 2, "quarantined": 2, "rejected": 2}
    assert list(oracle.differences(fates, fates.as_dict())) == []
    assert list(oracle.differences(fates, fates.as_dict() | {"counted": 1})) == [
        "counted: expected 2, found 1"
    ]
