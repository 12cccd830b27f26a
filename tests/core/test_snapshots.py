"""Downloaded snapshots do not fill the disk."""

import os
from pathlib import Path

from core.snapshots import KEPT, keep_newest


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for age in range(5):
        file = tmp_path / f"usage-{age}.duckdb"
        file.touch()
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "usage-9.12.tmp").touch()
    keep_newest(tmp_path, ".duckdb")
    assert KEPT == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "usage-0.duckdb", "usage-1.duckdb", "usage-2.duckdb", "usage-9.12.tmp",
    ]  # fmt: skip
    keep_newest(tmp_path, ".duckdb")
    assert len(list(tmp_path.glob("*.duckdb"))) == 3
