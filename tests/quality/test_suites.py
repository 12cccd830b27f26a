"""Each suite holds on what the platform makes, and each of its rules is red on rows that break it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import dagster as dg
import polars as pl
import pytest

from assets.resources import Platform
from assets.usage.landing import land
from assets.usage.snapshot import publish_snapshot
from core.database import Database
from core.objects import open_objects
from core.prices import read_file, record
from core.prices.file import DEFAULT_FILE
from core.settings import DatabaseSettings, ObjectSettings
from core.snapshots import BUCKET
from quality.runner import SuiteError, judge
from quality.suite_checks import suites
from quality.suites import SUITES, Suite
from quality.suites.suite import between
from tests.assets.usage.lake import event, local_lake, records, slice_of
from tests.assets.usage.test_publish import TABLES, go, query

BY_NAME = {suite.name: suite for suite in SUITES}
Samples = dict[str, pl.DataFrame]

MUTATIONS: dict[str, list[tuple[str, Any]]] = {
    "usage_events": [
        ("fate", "lost"),
        ("offset", 1),
        ("tenant", None),
        ("offset", -1),
        ("quantity", Decimal(-1)),
        ("meter", "llm.tokens.imaginary"),
        ("identity_has_16_bytes", "no"),
        ("readable_is_whole", "no"),
        ("counted_has_a_quantity", "no"),
        ("unusual_has_a_code", "no"),
        ("duplicate_names_its_winner", "no"),
        ("live_is_not_ahead", "no"),
    ],
    "usage_cells": [
        ("*", None),
        ("grain", "week"),
        ("meter", "llm.tokens.imaginary"),
        ("quantity", Decimal(-1)),
        ("events", -1),
        ("dimensions", "[]"),
        ("dimensions_key", "short"),
        ("starts_with_its_period", "no"),
        ("stands_for_every_event", "no"),
        ("is_published", "no"),
    ],
    "usage_prices": [
        ("id", "*"),
        ("revision", "*"),
        ("tenant", None),
        ("meter", "llm.tokens.imaginary"),
        ("unit_price", Decimal(-1)),
        ("per", 0),
        ("model", "auction"),
        ("included", Decimal(-1)),
        ("minimum", Decimal(-1)),
        ("tiers_fit_the_model", "no"),
        ("last_tier_has_no_end", "no"),
        ("currency", "usd"),
        ("one_currency", "no"),
        ("holds_from_full_hours", "no"),
        ("ends_after_it_begins", "no"),
        ("recorded_in_order", "no"),
    ],
    "usage_snapshot": [
        ("tenant", None),
        ("meter", "llm.tokens.imaginary"),
        ("quantity", Decimal(-1)),
        ("events", -1),
        ("dimensions", "[]"),
        ("strange_charges", 1),
        ("days_add_up_to_their_hours", "no"),
        ("shows_the_pointers_version", "no"),
    ],
}
"""A rule a line, in the order of the suite: the column and the value that break it in the first row. `*` stands
for what the second row has."""


@dataclass(frozen=True, slots=True)
class Made:
    """An installation with some usage of every fate, published and shown in a snapshot."""

    variables: dict[str, str]
    samples: Samples


@pytest.fixture(scope="module")
def made(postgres: DatabaseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("suites")
    query(postgres, f"truncate {', '.join(TABLES)}")
    objects = ObjectSettings(objects_url=f"file://{folder}")
    asyncio.run(_prepared(postgres, objects))
    lake = local_lake(folder)
    first = records([event(1), event(2), event(1), event(1, quantity="6"), b"bad", event(3, minutes=-60)])
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
        samples = {suite.name: _sample(suite) for suite in SUITES}
    yield Made(variables, samples)
    asyncio.run(_emptied(postgres, objects))
    query(postgres, f"truncate {', '.join(TABLES)}")


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_what_the_platform_makes_holds(suite: Suite, made: Made) -> None:
    verdict = judge(suite, made.samples[suite.name])
    assert verdict.failed == ()
    assert (verdict.rows, verdict.judged) == (len(made.samples[suite.name]), len(suite.expectations))
    assert verdict.rows > 1


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_each_rule_is_red_on_rows_that_break_it(suite: Suite, made: Made) -> None:
    good, red = made.samples[suite.name], []
    for column, value in MUTATIONS[suite.name]:
        bad = pl.concat([good, good.head(1)]) if column == "*" else _changed(good, column, value)
        red.append({line.split(":")[0] for line in judge(suite, bad).failed})
    rules = [each.name for each in suite.expectations]
    assert [rule for rule, found in zip(rules, red, strict=True) if rule not in found] == []


def test_a_line_names_the_rule_and_counts_but_quotes_nothing(made: Made) -> None:
    bad = _changed(made.samples["usage_prices"], "currency", "secret")
    (line,) = judge(BY_NAME["usage_prices"], bad).failed
    assert line == f"ExpectColumnValuesToMatchRegex(column=currency): 1 of {len(bad)} rows differ; ISO 4217"


def test_a_rule_about_a_column_that_is_not_there_is_an_error_and_not_green(made: Made) -> None:
    suite = Suite("s", "usage_events", "", BY_NAME["usage_events"].sample, (between("gone", 0, None, ""),))
    with pytest.raises(SuiteError, match="gone"):
        judge(suite, made.samples["usage_events"])


def test_all_of_them_are_checks_of_one_run(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    job = dg.define_asset_job("suites", dg.AssetSelection.checks(*suites.check_keys))
    definitions = dg.Definitions(
        assets=[dg.AssetSpec("usage_events"), dg.AssetSpec("usage_cells"), dg.AssetSpec("usage_snapshot")],
        asset_checks=[suites],
        jobs=[job],
        resources={"platform": Platform()},
    )
    done = definitions.resolve_job_def("suites").execute_in_process()
    found = {each.check_name: each.passed for each in done.get_asset_check_evaluations()}
    assert found == {f"suite_{suite.name}": True for suite in SUITES}


def _sample(suite: Suite) -> pl.DataFrame:
    rows = suite.sample(Platform())
    assert rows is not None
    return rows


def _changed(good: pl.DataFrame, column: str, value: Any) -> pl.DataFrame:
    values = good[column].to_list()
    values[0] = values[1] if value == "*" else value
    return good.with_columns(pl.Series(column, values, dtype=good.schema[column]))


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
