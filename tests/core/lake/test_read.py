"""What is read of a table: the files that can hold it, and of their rows first what decides."""

from pathlib import Path

import polars as pl

from core.lake import Lake
from core.lake.commit import commit, create
from core.lake.read import scan
from core.settings import ObjectSettings

TABLE = "numbers"


def test_the_first_condition_is_looked_at_alone_and_both_hold(tmp_path: Path) -> None:
    lake = Lake(ObjectSettings(objects_url=f"file://{tmp_path}"))
    rows = pl.DataFrame(
        {"slice": [1, 2, 3, 4], "owner": ["a", "b", "a", "a"], "value": [1, 2, 3, 4], "text": ["t"] * 4}
    )
    create(lake, TABLE, rows.clear(), ("slice",))
    commit(lake, TABLE, rows, {}, {})
    handle = lake.open(TABLE)
    assert handle is not None
    where, first = pl.col("value") < 4, pl.col("owner") == "a"
    found = scan(lake, TABLE, handle, where=where, within=[("slice", 1, 9)], first=first)
    assert found is not None
    assert found.select("slice").collect(engine="streaming")["slice"].to_list() == [1, 3]
    # Of all rows only owner and slice are read: the reader knows of no other condition, and of no column nobody wants.
    plan = found.select("slice").explain()
    (read,) = (line for line in plan.splitlines() if "SELECTION" in line)
    assert '"owner"' in read
    assert '"slice"' in read
    assert '"value"' not in read
    assert "PROJECT 3/4 COLUMNS" in plan
