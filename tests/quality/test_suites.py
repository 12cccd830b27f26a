"""Each suite holds on what the platform makes, and each of its rules is red on rows that break it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest

from assets.resources import Platform
from assets.usage.landing import land
from assets.usage.snapshot import publish_snapshot
from core.contracts.usage import UsageData, UsageEvent
from core.database import Database
from core.objects import open_objects
from core.prices import read_file, record
from core.prices.file import DEFAULT_FILE
from core.settings import DatabaseSettings, ObjectSettings
from core.snapshots import BUCKET, fetch_latest
from quality.runner import SuiteError, judge
from quality.suite_checks import suites
from quality.suites import SUITES, Suite
from quality.suites.suite import between
from quality.suites.usage_snapshot import rows_of
from tests.assets.usage.lake import NOW, event, local_lake, records, slice_of
from tests.assets.usage.test_publish import TABLES, go, query

BY_NAME = {suite.name: suite for suite in SUITES}
Samples = dict[str, pl.DataFrame]

UNSUMMABLE = "users.active"


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row that has the values of `of`, with others. A callable is given the row."""

    changes: Mapping[str, Any]
    of: Mapping[str, Any] = field(default_factory=dict)


def broken(of: Mapping[str, Any] | None = None, **changes: Any) -> Broken:
    return Broken(changes, of or {})


def later(column: str, **by: int) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row[column] + timedelta(**by)


COUNTED, DUPLICATE, QUARANTINED, REJECTED = (
    {"fate": fate} for fate in ("counted", "duplicate", "quarantined", "rejected")
)
AGAIN = Broken({})
"""A row stands there twice."""

MUTATIONS: dict[str, list[list[Broken]]] = {
    "usage_events": [
        [broken(fate="lost")],
        [AGAIN],
        [broken(tenant=None)],
        [broken(offset=-1)],
        [
            broken(COUNTED, quantity=Decimal(-1)),
            broken(COUNTED, kind="void"),
            broken(COUNTED, quantity=Decimal(10) ** 18 + 1),
        ],
        [broken(meter="llm.tokens.imaginary")],
        [broken(COUNTED, identity=b"fifteen bytes.."), broken(DUPLICATE, identity=None)],
        [broken(QUARANTINED, **{name: None}) for name in ("event_id", "kind", "event_time")],
        [broken(COUNTED, quantity=None)],
        [broken(QUARANTINED, code=None), broken(REJECTED, code=None)],
        [broken(DUPLICATE, winner_offset=None)],
        [
            broken(COUNTED, event_time=later("received", minutes=5, microseconds=1)),
            broken(COUNTED, event_time=None),
        ],
    ],
    "usage_cells": [
        [AGAIN],
        [broken(grain="week")],
        [broken(meter="llm.tokens.imaginary")],
        [broken(quantity=Decimal(-1))],
        [broken(events=-1)],
        [broken(dimensions="[]")],
        [broken(dimensions_key="short")],
        [
            broken({"grain": "hour"}, period_start=later("period_start", minutes=1)),
            broken({"grain": "day"}, period_start=later("period_start", hours=1)),
        ],
        [
            broken({"meter": UNSUMMABLE}, elements_events=None),
            broken({"meter": UNSUMMABLE}, elements_events=Decimal(2)),
        ],
        [broken(lake_version=lambda row: row["newest"] + 1)],
    ],
    "usage_prices": [
        [AGAIN],
        [AGAIN],
        [broken(tenant=None)],
        [broken(meter="llm.tokens.imaginary")],
        [broken(unit_price=Decimal(-1))],
        [broken(per=0)],
        [broken(model="auction")],
        [broken(included=Decimal(-1))],
        [broken(minimum=Decimal(-1))],
        [broken({"model": "flat"}, tiers=2), broken({"model": "flat"}, model="graduated")],
        [broken(open_end=False)],
        [broken(currency="usd")],
        [broken(currency="EUR")],
        [
            broken(valid_from=later("valid_from", seconds=1)),
            broken(valid_to=later("valid_from", hours=1, minutes=30)),
        ],
        [broken(valid_to=lambda row: row["valid_from"]), broken(valid_to=later("valid_from", hours=-1))],
        [broken(recorded_at=later("recorded_at", days=-1))],  # the newest stands first
    ],
    "usage_snapshot": [
        [broken(tenant=None)],
        [broken(meter="llm.tokens.imaginary")],
        [broken(quantity=Decimal(-1))],
        [broken(events=-1)],
        [broken(dimensions="[]")],
        [broken(strange_charges=1)],
        [
            broken({"summable": True}, hours_events=lambda row: row["hours_events"] + 1),
            broken({"summable": True}, hours_quantity=lambda row: row["hours_quantity"] - 1),
            broken({"summable": True}, days_quantity=None),
            broken({"summable": False}, elements_quantity=Decimal(2)),
            broken({"summable": False}, elements_quantity=None),
        ],
        [broken(lake_version="999"), broken(lake_version=None)],
    ],
}
"""A rule a line, in the order of the suite: rows as they are read, before anything is computed of them, each of which
alone breaks it."""

IN_A_FILE = [
    ("update charges set amount_unrounded = -1", "ExpectColumnValuesToBeBetween(column=strange_charges)"),
    ("update charges set price_id = 'gone'", "ExpectColumnValuesToBeBetween(column=strange_charges)"),
    ("delete from prices", "ExpectColumnValuesToBeBetween(column=strange_charges)"),
    (
        "update usage_hourly set events = events + 1",
        "ExpectColumnValuesToBeInSet(column=days_add_up_to_their_hours)",
    ),
    (
        f"update usage_hourly set quantity = 1 + quantity where meter <> '{UNSUMMABLE}'",
        "ExpectColumnValuesToBeInSet(column=days_add_up_to_their_hours)",
    ),
    ("delete from usage_elements", "ExpectColumnValuesToBeInSet(column=days_add_up_to_their_hours)"),
    (
        "update meta set value = '999' where name = 'lake_version'",
        "ExpectColumnValuesToBeInSet(column=shows_the_pointers_version)",
    ),
]
"""What a snapshot's own query finds in a file, and the one rule that is red then."""


@dataclass(frozen=True, slots=True)
class Made:
    """An installation with some usage of every fate, published and shown in a snapshot."""

    variables: dict[str, str]
    rows: Samples
    """As they are read."""
    samples: Samples
    """As they are judged."""
    file: Path
    """The snapshot."""


@pytest.fixture(scope="module")
def made(postgres: DatabaseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("suites")
    query(postgres, f"truncate {', '.join(TABLES)}")
    objects = ObjectSettings(objects_url=f"file://{folder}")
    asyncio.run(_prepared(postgres, objects))
    lake = local_lake(folder)
    users = [_of(UNSUMMABLE, number, user=f"u{number}", product="p") for number in range(3)]
    first = records(
        [event(1), event(2), event(1), event(1, quantity="6"), b"bad", event(3, minutes=-60), *users]
    )
    far = records([event(7, tenant="org_b", minutes=600), event(8, tenant="org_b")], partition=2)
    land(lake, folder / "index", slice_of(first, far), [first, far])
    go(lake, postgres)
    publish_snapshot(lake, postgres, objects)
    variables = {
        "HEADRACE_DATABASE_URL": postgres.database_url,
        "HEADRACE_DATABASE_SYSTEM_PASSWORD": _secret(postgres.database_system_password),
        "HEADRACE_DATABASE_APP_PASSWORD": _secret(postgres.database_app_password),
        "HEADRACE_OBJECTS_URL": objects.objects_url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        found = {suite.name: _rows(suite) for suite in SUITES}
        file = asyncio.run(fetch_latest(objects, postgres, folder / "read"))
    yield Made(variables, found, {suite.name: suite.prepared(found[suite.name]) for suite in SUITES}, file)
    asyncio.run(_emptied(postgres, objects))
    query(postgres, f"truncate {', '.join(TABLES)}")


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_what_the_platform_makes_holds(suite: Suite, made: Made) -> None:
    verdict = judge(suite, made.samples[suite.name])
    assert verdict.failed == ()
    assert (verdict.rows, verdict.judged) == (len(made.samples[suite.name]), len(suite.expectations))
    assert verdict.rows > 1


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_each_rule_is_red_on_input_that_breaks_it(suite: Suite, made: Made) -> None:
    rules, green = [each.name for each in suite.expectations], list[tuple[str, Broken]]()
    for rule, inputs in zip(rules, MUTATIONS[suite.name], strict=True):
        for each in inputs:
            bad = suite.prepared(_with(made.rows[suite.name], each))
            if rule not in {line.split(":")[0] for line in judge(suite, bad).failed}:
                green.append((rule, each))
    assert green == []


@pytest.mark.parametrize(("change", "rule"), IN_A_FILE)
def test_what_is_wrong_in_a_snapshot_is_found_in_its_file(
    change: str, rule: str, made: Made, tmp_path: Path
) -> None:
    path = tmp_path / "changed.duckdb"
    path.write_bytes(made.file.read_bytes())
    with duckdb.connect(str(path)) as connection:
        connection.execute(change)
    suite = BY_NAME["usage_snapshot"]
    said = made.rows[suite.name]["pointers_version"][0]
    bad = suite.prepared(rows_of(path).with_columns(pointers_version=pl.lit(said)))
    assert {line.split(":")[0] for line in judge(suite, bad).failed} == {rule}


def test_a_line_names_the_rule_and_counts_but_quotes_nothing(made: Made) -> None:
    bad = _with(made.samples["usage_prices"], broken(currency="secret"))
    (line,) = judge(BY_NAME["usage_prices"], bad).failed
    assert line == f"ExpectColumnValuesToMatchRegex(column=currency): 1 of {len(bad)} rows differ; ISO 4217"


def test_a_rule_about_a_column_that_is_not_there_is_an_error_and_not_green(made: Made) -> None:
    suite = Suite(
        "s", "usage_events", "", BY_NAME["usage_events"].rows, _same, (between("gone", 0, None, ""),)
    )
    with pytest.raises(SuiteError, match="gone"):
        judge(suite, made.samples["usage_events"])


def test_all_of_them_are_checks_of_one_run(
    made: Made, postgres: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red is the one whose input is wrong. Last, because the cells stay so."""
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    job = dg.define_asset_job("suites", dg.AssetSelection.checks(*suites.check_keys))
    definitions = dg.Definitions(
        assets=[dg.AssetSpec("usage_events"), dg.AssetSpec("usage_cells"), dg.AssetSpec("usage_snapshot")],
        asset_checks=[suites],
        jobs=[job],
        resources={"platform": Platform()},
    )
    for wrong in ("", "usage_cells"):
        if wrong:
            query(
                postgres,
                "update usage_cell set period_start = period_start + interval '1 minute' where grain = 'hour' returning 1",
            )
        done = definitions.resolve_job_def("suites").execute_in_process()
        found = {each.check_name: each.passed for each in done.get_asset_check_evaluations()}
        assert found == {f"suite_{suite.name}": suite.name != wrong for suite in SUITES}


def _rows(suite: Suite) -> pl.DataFrame:
    rows = suite.rows(Platform())
    assert rows is not None
    return rows


def _same(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def _with(rows: pl.DataFrame, each: Broken) -> pl.DataFrame:
    if each is AGAIN:
        return pl.concat([rows, rows.head(1)])
    found = rows.to_dicts()
    row = next(row for row in found if each.of.items() <= row.items())
    row |= {name: value(row) if callable(value) else value for name, value in each.changes.items()}
    # A column without any value has no type of its own.
    kinds = {name: kind for name, kind in rows.schema.items() if kind != pl.Null}
    return pl.DataFrame(found, schema_overrides=kinds, infer_schema_length=None)


def _of(meter: str, number: int, **dimensions: str) -> bytes:
    return UsageEvent(
        id=f"u{number}", source="s", time=NOW, tenant="org_a", type="headrace.usage.v1", specversion="1.0",
        data=UsageData(meter, "1", dimensions),
    ).encode()  # fmt: skip


async def _prepared(postgres: DatabaseSettings, objects: ObjectSettings) -> None:
    async with open_objects(objects, postgres) as store:
        await store.ensure_bucket(BUCKET, versioned=False)
    system = Database(postgres, role="system")
    async with system.writer() as connection:
        await record(connection, read_file(DEFAULT_FILE))
    await system.close()


async def _emptied(postgres: DatabaseSettings, objects: ObjectSettings) -> None:
    """No snapshot whose file goes with this module's folder."""
    async with open_objects(objects, postgres) as store:
        for key in [item.key async for item in store.list(BUCKET)]:
            await store.delete(BUCKET, key)


def _secret(value: Any) -> str:
    found: str = value.get_secret_value()
    return found
