"""Options of `headrace usage import`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.cli import usage
from deploy.cli.frame import CommandError
from deploy.cli.main import main
from deploy.cli.usage import meters_of
from deploy.imports.mapping import ImportFileError, Mapped
from deploy.imports.runner import examine
from deploy.imports.times import Relative
from deploy.installation import prepare
from tests.servers import free_port


def test_pairs_of_meter_and_column() -> None:
    assert meters_of(["llm.tokens.input=a=b", "x=y"]) == {"llm.tokens.input": "a=b", "x": "y"}


@pytest.mark.parametrize("pairs", [["llm.tokens.input"], ["=a"], ["x="], ["x=a", "x=b"]])
def test_what_cannot_be_meant_is_refused(pairs: list[str]) -> None:
    with pytest.raises(CommandError, match="--meter"):
        meters_of(pairs)


@pytest.mark.parametrize(
    ("meter", "text", "reason"),
    [
        (
            "llm.tokens.inptu",
            "at,in\n2026-01-01 00:00:00,1\n",
            "no meter llm.tokens.inptu; known: .*llm.tokens.input",
        ),
        ("llm.tokens.input", "at,out\n2026-01-01 00:00:00,1\n", "no column in"),
        ("llm.tokens.input", "at,in\nyesterday,1\n", "no row that can be imported: line 2: column at"),
    ],
)
def test_a_file_is_examined_before_anything_is_made(
    tmp_path: Path, meter: str, text: str, reason: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(ImportFileError, match=reason):
        examine(file, Mapped("s", "at", {meter: "in"}))


def test_a_file_that_cannot_be_imported_asks_the_platform_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing listens there, so any call would wait for it and fail otherwise."""
    installation = prepare(
        tmp_path / "data", None, None, {"HEADRACE_GATEWAY_URL": f"http://127.0.0.1:{free_port()}"}
    )
    words = ["--tenant", "typo", "--source", "s", "--time-column", "at", "--meter", "llm.tokens.input=in"]
    run = installation.run
    run.lock()
    assert (
        main(["usage", "import", str(tmp_path / "none.csv"), *words, "--data", str(tmp_path / "data")]) == 1
    )
    run.unlock()
    assert "cannot open" in capsys.readouterr().err


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    usage.register(parser.add_subparsers())
    return parser.parse_args(["usage", "import", "f", "--tenant", "t", "--source", "s", "--time-column", "at", *words])  # fmt: skip


def test_options_say_what_a_file_without_names_means() -> None:
    plain = usage.mapped_of(options("--meter", "api.requests=n"))
    assert plain == Mapped("s", "at", {"api.requests": "n"})
    words = ("--columns", "at,n,,model", "--time-unit", "ms", "--time-origin", "2026-01-01T08:00:00+08:00")
    told = usage.mapped_of(options("--meter", "api.requests=n", *words, "--round-quantities"))
    assert told.columns == ("at", "n", "", "model")
    assert told.relative == Relative("ms", datetime(2026, 1, 1, tzinfo=UTC))
    assert told.round_quantities


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--time-unit", "s"), "go together.*1970-01-01T00:00:00Z for Unix"),
        (("--time-origin", "2026-01-01T00:00:00Z"), "go together"),
        (("--time-unit", "s", "--time-origin", "today"), "--time-origin is not a time"),
        (("--columns", ""), "--columns must name"),
        (("--columns", ",,"), "--columns must name"),
        (("--columns", "at,n,n"), "--columns must name each column once"),
    ],
)
def test_what_is_half_said_is_refused(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        usage.mapped_of(options("--meter", "api.requests=n", *words))
