"""The linter of money is red on each law broken, green on the project, and looks where money is."""

from pathlib import Path

import pytest

from tests.lint.money import COUNTS_IN_MEMORY, KERNEL, MONEY, ROOT, check, increments, main, money, sql


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("PRICE = 0.1\n", "m.py:1: the float 0.1"),
        ("x: float\n", "`float`"),
        ("x = float(text)\n", "`float`"),
        ("x = 1\ny = round(amount, 2)\n", "m.py:2: `round`"),
        ("x = amount / 3\n", "`/` rounds"),
        ("x = amount / per\n", "`/` rounds"),
        ("amount /= per\n", "`/=` rounds"),
        ("x = sum(amounts)\n", "`sum`"),
        ("x = sum(amounts)  # money\n", "`sum`"),
        ("x = amount / per  # seconds\n", "`/` rounds"),
        ("x_seconds = amount / per\n", "`/` rounds"),
        ("price = 0.5 * seconds\n", "the float 0.5"),
        ("x = round(amount)  # seconds\n", "`round`"),
        ('x = amount / ("a" if first else per)\n', "`/` rounds"),
    ],
)
def test_a_float_a_division_and_a_sum_are_red(source: str, said: str) -> None:
    (finding,) = money(source, "m.py", kernel=True)
    assert said in str(finding)


@pytest.mark.parametrize(
    "source",
    [
        'PRICE = Decimal("0.1")\n',
        "x = EXACT.divide(amount, per)\n",
        'path = folder / "prices.toml"\n',
        'path = folder / f"{name}.json"\n',
        "hours = (end - start) // HOUR\n",
        'path = folder / ("a" if first else f"a.{number}")\n',
        "units = sum(whole)  # integers\n",
        "EVERY = 0.5  # seconds\n",
        "wait: float = 2.5  # seconds\n",
        "WAIT_SECONDS: Final = 0.5\n",
        "at = price.float_at\n",
    ],
)
def test_what_is_exact_is_green(source: str) -> None:
    assert list(money(source, "m.py", kernel=True)) == []


def test_only_the_kernel_may_not_sum() -> None:
    assert list(money("x = sum(counts)\n", "m.py", kernel=False)) == []


@pytest.mark.parametrize(
    "source",
    [
        "cell.quantity += event.quantity\n",
        'row["events"] -= 1\n',
        'SQL = "update usage_cell set quantity = quantity + :more"\n',
        'SQL = "insert into usage_cell values (1) on conflict do update set events = usage_cell.events + excluded.events"\n',
        'SQL = f"update usage_cell set {column} = {column} + excluded.{column}"\n',
        'SQL = f"update usage_conservation set landed = {table}.landed + 1"\n',
        'SQL = """update usage_watermark\n set next_offset = usage_watermark.next_offset\n + 1"""\n',
    ],
)
def test_an_increment_of_what_is_published_is_red(source: str) -> None:
    assert len(list(increments(source, "assets/usage/publish.py"))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "quantity += more\n",
        "self.attempts += 1\n",
        'SQL = "update usage_cell set quantity = excluded.quantity, events = excluded.events"\n',
        'SQL = "update outbox set attempts = attempts + 1"\n',
        'SQL = "select a from usage_cell where x = x"\n',
        'SQL = "update agent set revision = revision + 1"\n',
    ],
)
def test_what_is_absolute_or_nobodys_publication_is_green(source: str) -> None:
    assert list(increments(source, "assets/usage/publish.py")) == []


def test_a_file_of_sql_is_read_statement_by_statement() -> None:
    text = (
        "-- usage_cell: quantity = quantity + 1 would count a retry again\n"
        "update outbox set attempts = attempts + 1;\n"
        "update usage_cell\n   set quantity = quantity + 1;\n"
    )
    assert [finding.line for finding in sql(text, "x.sql")] == [4]


def test_13_the_project_is_green_and_its_money_is_looked_at() -> None:
    assert check() == []
    found = {
        pattern: {str(file.relative_to(ROOT)) for file in ROOT.glob(pattern)} for pattern in (*MONEY, *KERNEL)
    }
    assert [pattern for pattern, files in found.items() if not files] == []
    assert set().union(*found.values()) >= {
        "core/decimals.py", "core/aggregation.py", "core/rating/money.py", "core/rating/lines.py", "core/prices/models.py",
        "core/prices/lists/entries.py", "core/invoices/issue.py", "services/billing/money.py", "services/billing/quota.py",
        "services/billing/invoices/documents.py", "services/billing/trace/reconcile.py", "assets/usage/snapshot.py",
        "assets/usage/elements.py", "assets/usage/upsert.py",
    }  # fmt: skip
    assert set(KERNEL) < set(MONEY)
    assert all((ROOT / path).is_file() for path in COUNTS_IN_MEMORY)


def test_13_a_broken_law_in_a_real_module_ends_lint_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = (ROOT / "core/rating/money.py").read_text()
    broken = tmp_path / "core/rating/money.py"
    broken.parent.mkdir(parents=True)
    monkeypatch.setattr("tests.lint.money.check.__defaults__", (tmp_path,))
    broken.write_text(real)
    assert main() == 0
    broken.write_text(real.replace("EXACT.scaleb(amount, minor_digits(currency))", "amount / 0.01"))
    assert main() == 1
    assert "core/rating/money.py" in capsys.readouterr().out
