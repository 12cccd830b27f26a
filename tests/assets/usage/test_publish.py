"""From landed slices to published cells: absolute, forward only, the same on every repetition."""

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg2
import pytest

from assets.usage.evidence import evidence
from assets.usage.landing import land
from assets.usage.publish import LakeBehindError, publish
from assets.usage.rollup import daily, roll_up
from core.contracts.usage import UsageData, UsageEvent
from core.database import dsn
from core.lake import Lake
from core.settings import DatabaseSettings
from tests.assets.usage.lake import NOW, event, local_lake, records, slice_of

TABLES = (
    "usage_cell",
    "usage_element",
    "usage_conservation",
    "usage_watermark",
    "usage_publication",
    "usage_quarantine",
)


@pytest.fixture
def empty(postgres: DatabaseSettings) -> Iterator[DatabaseSettings]:
    query(postgres, f"truncate {', '.join(TABLES)}")
    yield postgres
    query(postgres, f"truncate {', '.join(TABLES)}")


def query(database: DatabaseSettings, sql: str) -> list[tuple[Any, ...]]:
    """As the owner, who is not bound by row-level security's policies for rows it may truncate."""
    connection = psycopg2.connect(dsn(database, "owner" if sql.startswith("truncate") else "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def go(lake: Lake, database: DatabaseSettings) -> None:
    roll_up(lake)
    daily(lake)
    publish(lake, database)


def cells(database: DatabaseSettings) -> list[tuple[Any, ...]]:
    return query(
        database,
        "select tenant_id, grain, to_char(period_start at time zone 'UTC', 'DD HH24'), dimensions::text, quantity, events "
        "from usage_cell order by 1, 2, 3, 4",
    )


def test_cells_are_absolute_and_repeating_changes_nothing(tmp_path: Path, empty: DatabaseSettings) -> None:
    lake = local_lake(tmp_path)
    first = records([event(1), event(2, quantity="0.000000001"), event(2), b"bad", event(3, minutes=-60)])
    land(lake, tmp_path / "index", slice_of(first), [first])
    go(lake, empty)
    second = records([event(5), event(3, minutes=-60)], start=5)
    other = records([event(1, tenant="org_b", quantity="7")], partition=3, tenant="org_b")
    land(lake, tmp_path / "index", slice_of(second, other), [second, other])
    for _ in range(2):
        go(lake, empty)
        assert cells(empty) == [
            ("org_a", "day", "01 00", '{"model": "m"}', Decimal("15"), 3),
            ("org_a", "day", "01 00", "{}", Decimal("0.000000001"), 1),
            ("org_a", "hour", "01 11", '{"model": "m"}', Decimal("5"), 1),
            ("org_a", "hour", "01 12", '{"model": "m"}', Decimal("10"), 2),
            ("org_a", "hour", "01 12", "{}", Decimal("0.000000001"), 1),
            ("org_b", "day", "01 00", '{"model": "m"}', Decimal("7"), 1),
            ("org_b", "hour", "01 12", '{"model": "m"}', Decimal("7"), 1),
        ]
        assert query(
            empty,
            "select tenant_id, partition, landed, counted, duplicates, quarantined, rejected from usage_conservation order by 1, 2",
        ) == [("org_a", 0, 7, 4, 1, 1, 1), ("org_b", 3, 1, 1, 0, 0, 0)]
        assert query(empty, "select partition, next_offset from usage_watermark order by 1") == [
            (0, 7),
            (3, 1),
        ]
    assert query(empty, "select count(*) from usage_publication") == [(2,)]


def test_a_database_restored_to_an_earlier_time_is_brought_forward(
    tmp_path: Path, empty: DatabaseSettings
) -> None:
    lake = local_lake(tmp_path)
    for number in range(3):
        batch = records([event(number * 2), event(number * 2 + 1)], start=number * 2)
        land(lake, tmp_path / "index", slice_of(batch), [batch])
        go(lake, empty)
    whole = cells(empty)
    query(
        empty, "truncate usage_cell, usage_conservation, usage_watermark, usage_publication, usage_quarantine"
    )
    go(lake, empty)
    assert cells(empty) == whole
    assert whole


def test_an_older_lake_does_not_move_cells_back(tmp_path: Path, empty: DatabaseSettings) -> None:
    lake = local_lake(tmp_path / "now")
    batch = records([event(1), event(3)])
    land(lake, tmp_path / "now/index", slice_of(batch[:1]), [batch[:1]])
    go(lake, empty)
    shutil.copytree(tmp_path / "now", tmp_path / "old")
    land(lake, tmp_path / "now/index", slice_of(batch[1:]), [batch[1:]])
    go(lake, empty)
    newest = cells(empty)
    with pytest.raises(LakeBehindError):
        publish(local_lake(tmp_path / "old"), empty)
    assert cells(empty) == newest
    assert newest[0][4] == Decimal("10")


def test_conservation_compares_two_tables(tmp_path: Path) -> None:
    lake = local_lake(tmp_path)
    batch = records([event(1), event(1), event(1, quantity="9"), b"x"])
    land(lake, tmp_path / "index", slice_of(batch), [batch])
    roll_up(lake)
    row = evidence(lake, 1, 1).conservation.row(0, named=True)
    assert (row["landed"], row["counted"], row["duplicates"], row["quarantined"], row["rejected"]) == (
        4,
        1,
        1,
        1,
        1,
    )
    assert (row["first_offset"], row["end_offset"], row["records"]) == (0, 4, 4)


def test_the_largest_event_and_the_strangest_tenant_are_published(
    tmp_path: Path, empty: DatabaseSettings
) -> None:
    """Any accepted record that publication cannot write would stop it for everybody, for ever."""
    lake = local_lake(tmp_path)
    wide = {name: chr(0x1F600) * 256 for name in ("provider", "model", "region")}
    largest = UsageEvent(
        id="x" * 256, source="s" * 256, time=NOW, tenant="t" * 128, type="headrace.usage.v1", specversion="1.0",
        data=UsageData("llm.tokens.input", "9" * 18 + "." + "9" * 9, wide), subject="u" * 256,
    )  # fmt: skip
    strange = ("\\N", '"', ",", "\\.", "\r", "a\nb", "'", " ", "NULL")
    batch = records([largest.encode(), *(event(number, tenant=name) for number, name in enumerate(strange))])
    unreadable = records([b"?"] * len(strange), partition=1)
    unreadable = [
        msgspec.structs.replace(r, key=f"{n}|".encode()) for r, n in zip(unreadable, strange, strict=True)
    ]
    land(lake, tmp_path / "index", slice_of(batch, unreadable), [batch, unreadable])
    go(lake, empty)
    found = query(empty, "select tenant_id, quantity from usage_cell where grain = 'hour'")
    assert {row[0] for row in found} == {"t" * 128, *strange}
    assert (Decimal("9" * 18 + "." + "9" * 9),) == next(row[1:] for row in found if row[0] == "t" * 128)
    fates = query(
        empty, "select tenant_id, sum(landed), sum(counted), sum(rejected) from usage_conservation group by 1"
    )
    assert sorted(fates) == sorted([("t" * 128, 1, 1, 0), *((name, 2, 1, 1) for name in strange)])


def test_a_lake_put_back_behind_the_publication_is_an_incident(
    tmp_path: Path, empty: DatabaseSettings
) -> None:
    lake = local_lake(tmp_path / "now")
    batch = records([event(1), event(3)])
    land(lake, tmp_path / "now/index", slice_of(batch[:1]), [batch[:1]])
    go(lake, empty)
    shutil.copytree(tmp_path / "now", tmp_path / "old")
    land(lake, tmp_path / "now/index", slice_of(batch[1:]), [batch[1:]])
    go(lake, empty)
    with pytest.raises(LakeBehindError, match="slice 2 is published, the lake ends at slice 1"):
        publish(local_lake(tmp_path / "old"), empty)


def test_what_was_not_counted_is_published_with_the_cells(tmp_path: Path, empty: DatabaseSettings) -> None:
    """Both versions of a conflict, whenever the counted one landed; of what cannot be read only its size."""
    lake = local_lake(tmp_path)
    first = records([event(1, quantity="5.50"), event(2, minutes=6)])
    land(lake, tmp_path / "index", slice_of(first), [first])
    go(lake, empty)
    second = records([event(1, quantity="7"), event(1, quantity="5.5"), b"not json"], start=2)
    other = records([event(1, quantity="8")], partition=2)
    land(lake, tmp_path / "index", slice_of(second, other), [second, other])
    query(empty, "update usage_quarantine set state = 'rejected', decided_by = 'usr_1', decided_at = now()")
    whole = []
    for _ in range(2):
        go(lake, empty)
        whole.append(query(empty, "select * from usage_quarantine order by slice, partition, log_offset"))
    assert whole[0] == whole[1]
    found = query(
        empty,
        "select slice, partition, log_offset, code, kind, source, event_id, version -> 'data' ->> 'quantity', "
        "version ->> 'time', counted -> 'data' ->> 'quantity', (counted ->> 'slice')::int, (counted ->> 'offset')::int, "
        "bytes, state from usage_quarantine order by slice, partition, log_offset",
    )
    at, late = "2026-06-01T12:00:00.000000Z", "2026-06-01T12:06:00.000000Z"
    assert found == [
        (1, 0, 1, "out_of_limits", "usage", "s", "e2", "5", late, None, None, None, None, "rejected"),
        (2, 0, 2, "conflict", "usage", "s", "e1", "7", at, "5.5", 1, 0, None, "open"),
        (2, 0, 4, "unreadable", None, None, None, None, None, None, None, None, 8, "open"),
        (2, 2, 0, "conflict", "usage", "s", "e1", "8", at, "5.5", 1, 0, None, "open"),
    ]
