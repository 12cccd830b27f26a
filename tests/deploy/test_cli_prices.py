"""`headrace prices`: what it says is what it does, and a second time it does nothing."""

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from core.database import Database, dsn
from core.prices import Price, read_prices
from core.settings import DatabaseSettings
from deploy.cli.main import main
from deploy.installation import load, prepare, write_env
from tests.conformance.queue.support import environment

PROVIDER = "test-prices"


@pytest.fixture
def data(tmp_path: Path, postgres: DatabaseSettings) -> Iterator[list[str]]:
    """Arguments that name an installation on the database of the tests, which has the rows no longer."""
    installation = prepare(tmp_path / "data", None, 0, {})
    write_env(installation.env_file, {**installation.environment, **environment(postgres)})
    yield ["--data", str(tmp_path / "data")]
    connection = psycopg2.connect(dsn(postgres, "owner"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("alter table price no force row level security")
            cursor.execute("delete from price where dimensions ->> 'provider' = %s", [PROVIDER])
            cursor.execute("alter table price force row level security")
    finally:
        connection.close()


def written(folder: Path, input_price: float) -> str:
    path = folder / "list.json"
    path.write_text(
        json.dumps(
            {
                "sample_spec": {"input_cost_per_token": 0.0},
                f"{PROVIDER}/m": {
                    "litellm_provider": PROVIDER,
                    "mode": "chat",
                    "input_cost_per_token": input_price,
                    "output_cost_per_token": 1e-05,
                    "output_cost_per_image": 0.04,
                },
            }
        )
    )
    return str(path)


def ask(settings: DatabaseSettings, statement: str | None = None) -> Any:
    """Rows of a statement; without one, the prices of the tests' provider."""

    async def work() -> Any:
        database = Database(settings, role="system")
        try:
            async with database.writer() as connection:
                if statement:
                    return (await connection.execute(text(statement))).scalars().all()
                return [
                    row for row in await read_prices(connection) if PROVIDER in dict(row.dimensions).values()
                ]
        finally:
            await database.close()

    return asyncio.run(work())


def test_an_import_is_shown_done_and_not_done_again(
    data: list[str], tmp_path: Path, postgres: DatabaseSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prices", "import", written(tmp_path, 2.5e-06), *data]
    assert main([*command, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert ask(postgres) == []
    assert [(row["meter"], row["before"], row["unit_price"]) for row in told["changes"]] == [
        ("llm.tokens.input", None, "2.5"),
        ("llm.tokens.cached", None, "2.5"),
        ("llm.tokens.cache_write", None, "2.5"),
        ("llm.tokens.output", None, "10"),
    ]
    assert (told["parked"], told["left_out"]) == ([], {"output_cost_per_image": 1})

    assert main(command) == 0
    assert "4 prices were recorded" in capsys.readouterr().err
    rows: list[Price] = ask(postgres)
    assert [row.unit_price for row in rows] == [Decimal(value) for value in ("2.5", "2.5", "2.5", "10")]
    assert all(row.tenant == "*" and row.recorded_at and row.revision for row in rows)
    imports = "select count(*) from outbox where topic = 'audit.logs' and convert_from(value, 'UTF8') like '%price.import%'"
    assert ask(postgres, imports) == [1]

    assert main(command) == 0
    assert "0 prices were recorded, 4 are as before" in capsys.readouterr().err
    assert ask(postgres) == rows
    assert ask(postgres, imports) == [1]

    # Ten times dearer: parked, told, and taken only when it is named.
    dearer = ["prices", "import", written(tmp_path, 2.5e-05), *data]
    assert main(dearer) == 3
    message = capsys.readouterr().err
    assert (
        f"parked:  llm.tokens.input {PROVIDER}/m: 2.5 → 25: it changes by more than a factor of 3" in message
    )
    assert ask(postgres) == rows
    assert main([*dearer, "--accept", f"{PROVIDER}/m"]) == 0
    assert {row.unit_price for row in ask(postgres)[4:]} == {Decimal(25)}


def test_the_price_file_is_recorded_over_what_corrected_it(
    tmp_path: Path, postgres: DatabaseSettings, capsys: pytest.CaptureFixture[str], data: list[str]
) -> None:
    file = tmp_path / "prices.toml"
    installation = load(tmp_path / "data")
    write_env(installation.env_file, {**installation.environment, "HEADRACE_PRICES_FILE": str(file)})
    command = ["prices", "record", *data]
    for unit_price, recorded in (("2", 1), ("3", 1), ("2", 1), ("2", 0)):
        file.write_text(
            f'currency = "USD"\n[[price]]\nmeter = "llm.tokens.input"\nunit_price = "{unit_price}"\nper = 1\n'
            f'dimensions = {{ provider = "{PROVIDER}" }}\nvalid_from = 2020-01-01T00:00:00Z\n'
        )
        assert main(command) == 0
        assert f"1 prices are declared, {recorded} were recorded" in capsys.readouterr().err
    assert [row.unit_price for row in ask(postgres)] == [Decimal(2), Decimal(3), Decimal(2)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"declared": 1, "recorded": []}
    file.write_text("currency = 1")
    assert main(command) == 1
    assert "prices.toml" in capsys.readouterr().err


def test_models_in_use_are_found_by_the_names_that_usage_has(
    data: list[str], tmp_path: Path, postgres: DatabaseSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    statement = (
        "insert into usage_cell values ('org_names', 'day', 'llm.tokens.input', '2026-01-01Z', "
        f"""'{{"provider": "{PROVIDER}", "model": "{PROVIDER}/M"}}', 'k', 1, 1, 1) returning 1"""
    )
    assert ask(postgres, statement) == [1]
    try:
        assert main(["prices", "import", written(tmp_path, 2e-06), *data, "--dry-run", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert {row["dimensions"]["model"] for row in told["changes"]} >= {f"{PROVIDER}/M"}
    finally:
        ask(postgres, "delete from usage_cell where tenant_id = 'org_names' returning 1")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["absent.json"], 1, "cannot be read"),
        ([__file__], 1, "cannot be read"),
        (["list.json", "--format", "genai"], 1, "no price list of the format genai"),
        (["list.json", "--factor", "0.5"], 2, "1 or more"),
    ],
)
def test_what_cannot_be_imported_is_told(
    data: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    written(tmp_path, 1e-06)
    command = ["prices", "import", str(tmp_path / arguments[0]), *arguments[1:], *data]
    if status == 2:
        with pytest.raises(SystemExit):
            main(command)
    else:
        assert main(command) == status
    assert message in capsys.readouterr().err
