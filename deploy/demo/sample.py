"""The project's own LLM request trace: bursty arrivals, heavy-tailed sizes, the same on every machine.

Published traces of LLM services show arrivals in bursts (Gamma-distributed gaps, coefficient of
variation well above 1: BurstGPT, arXiv:2401.17644) and log-normal prompt lengths with far tails
(Splitwise, ISCA 2024). Only `random.Random(seed).random()` is used, whose sequence Python guarantees
across versions; its other methods are not so bound.
"""

import csv
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

SEED = 20260118
REQUESTS = 10_000
START = datetime(2026, 1, 18, 8, 0, tzinfo=UTC)
HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURST_SHARE = 0.85
"""Share of requests that follow their predecessor within a burst."""


def requests(seed: int = SEED, count: int = REQUESTS) -> Iterator[tuple[str, int, int]]:
    """Yield (time with 100 ns and no zone, context tokens, generated tokens)."""
    source = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    ticks = 0
    for _ in range(count):
        mean_gap = 0.02 if source.random() < BURST_SHARE else 4.0
        ticks += int(-mean_gap * math.log(1.0 - source.random()) * 10_000_000)
        moment = START + timedelta(microseconds=ticks // 10)
        time = f"{moment:%Y-%m-%d %H:%M:%S.%f}{ticks % 10}"
        yield time, _lognormal(source, 6.9, 1.1, 32_000), _lognormal(source, 3.2, 1.0, 4_096)


def _lognormal(source: random.Random, mu: float, sigma: float, most: int) -> int:
    """A log-normal size by Box-Muller, between 1 and `most`."""
    normal = math.sqrt(-2.0 * math.log(1.0 - source.random())) * math.cos(2.0 * math.pi * source.random())
    return max(1, min(most, round(math.exp(mu + sigma * normal))))


def write(path: Path, seed: int = SEED, count: int = REQUESTS) -> Path:
    """Write the trace as CSV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(requests(seed, count))
    temporary.replace(path)
    return path
