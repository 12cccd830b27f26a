"""Which component dies when: decided by a seed before anything is started."""

import random
from dataclasses import dataclass

TARGETS = {
    "embedded": ("billing", "relay", "dagster-worker", "dagster-daemon", "postgres"),
    "stack": ("billing", "relay", "dagster-worker", "dagster-daemon", "postgres", "kafka", "minio"),
}
"""`dagster-worker` is the process of a run; all others are components of `headrace status`."""

SHORTEST, LONGEST = 2.0, 9.0
"""Seconds between two kills. The longest restart observed is a Dagster run's, at about seven."""


@dataclass(frozen=True, slots=True)
class Kill:
    after: float
    """Seconds to wait since the kill before."""
    target: str


def plan(profile: str, kills: int, seed: int) -> list[Kill]:
    """`kills` moments; every target dies as often as any other, give or take one, in shuffled order."""
    source = random.Random(seed)  # noqa: S311 - a repeatable drill, not a secret
    targets = TARGETS[profile]
    order: list[str] = []
    while len(order) < kills:
        round_ = list(targets)
        source.shuffle(round_)
        order += round_
    return [Kill(source.uniform(SHORTEST, LONGEST), target) for target in order[:kills]]
