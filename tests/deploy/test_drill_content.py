"""What drills compare: content that two installations share, and nothing that each makes for itself."""

from pathlib import Path

import duckdb

from deploy.drill import content

CELLS = "tenant varchar, meter varchar, period_start timestamptz, dimensions varchar, {more}quantity decimal(27, 9), events bigint"


def snapshot(path: Path, tenant: str, quantity: str = "1.5") -> Path:
    connection = duckdb.connect(str(path))
    try:
        for table, more in (
            ("usage_hourly", ""),
            ("usage_daily", ""),
            ("usage_elements", "element varchar, "),
        ):
            connection.execute(f"create table {table} ({CELLS.format(more=more)})")
        connection.execute(
            "create table charges (tenant varchar, meter varchar, dimensions varchar, quantity decimal(27, 9), "
            "unit_price varchar, per bigint, currency varchar, amount_unrounded decimal(27, 9))"
        )
        connection.execute(
            f"insert into usage_hourly values ('{tenant}', 'llm.requests', '2026-01-01 00:00:00+00', '{{}}', {quantity}, 1)"
        )
    finally:
        connection.close()
    return path


def test_a_tenant_has_the_same_content_under_the_id_of_another_installation(tmp_path: Path) -> None:
    calm, storm = snapshot(tmp_path / "calm", "org_1"), snapshot(tmp_path / "storm", "org_2")
    assert content.snapshot(calm, "org_1") == content.snapshot(storm, "org_2")
    assert content.snapshot(calm, None) != content.snapshot(storm, None)
    other = snapshot(tmp_path / "other", "org_2", "1.6")
    assert content.snapshot(other, "org_2") != content.snapshot(storm, "org_2")
