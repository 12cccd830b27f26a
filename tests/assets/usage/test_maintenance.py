"""Maintenance of the usage tables: cells, fates and conservation stay, also while slices land and are folded."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from assets.usage import schema
from assets.usage.evidence import evidence
from assets.usage.folding import fold_full_blocks
from core.lake.maintenance import compact, vacuum
from quality.gates import conservation as gate
from tests.assets.usage.lake import local_lake
from tests.assets.usage.test_folding import land_slices, table, values

TABLES = (schema.EVENTS, schema.HOURLY, schema.DAILY)
SLICES = 24


def work(folder: Path, first: int, last: int) -> None:
    """What runs do: land, roll up, fold what is full."""
    lake = local_lake(folder)
    for number in range(first, last + 1):
        land_slices(lake, folder, number, number)
        fold_full_blocks(lake, number - 1, number, (2, 8))


def test_values_and_conservation_stay_beside_landing(tmp_path: Path) -> None:
    plain, busy = tmp_path / "plain", tmp_path / "busy"
    for folder in (plain, busy):
        folder.mkdir()
    work(plain, 1, SLICES)
    code = (
        "import sys, pathlib; from tests.assets.usage.test_maintenance import work, SLICES\n"
        "work(pathlib.Path(sys.argv[1]), 1, SLICES)"
    )
    landing = subprocess.Popen([sys.executable, "-c", code, str(busy)])
    compacted: Counter[str] = Counter()
    while landing.poll() is None:
        for name in TABLES:
            compacted[name] += compact(local_lake(busy), name, order=schema.ORDERS.get(name, ())).removed
            vacuum(local_lake(busy), name)
    assert landing.returncode == 0
    assert all(compacted[name] for name in TABLES), compacted
    for name in TABLES:
        compact(local_lake(busy), name, order=schema.ORDERS.get(name, ()))
    lake, expected = local_lake(busy), local_lake(plain)
    for old, new in zip(values(expected), values(lake), strict=True):
        assert old.equals(new)
    facts = table(expected, schema.EVENTS).sort("slice", "partition", "offset")
    assert table(lake, schema.EVENTS).sort("slice", "partition", "offset").equals(facts)
    whole = evidence(lake, 1, SLICES).conservation
    assert gate(whole).problems == []
    assert whole.equals(evidence(expected, 1, SLICES).conservation)
    assert gate(evidence(lake, SLICES, SLICES).conservation).problems == []
