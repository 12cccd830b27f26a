"""Every command of the package is found, explains itself with examples, and fails with a sentence."""

import argparse
import itertools
import json
import os
import shlex
from pathlib import Path

import pytest

from deploy.cli.main import main, parser
from deploy.installation import prepare


def commands(top: argparse.ArgumentParser, path: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every leaf command by its words."""
    found: dict[str, argparse.ArgumentParser] = {}
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, child in group.choices.items():
            found |= commands(child, f"{path} {name}".strip())
    return found or {path: top}


EXPECTED = {
    "up", "down", "serve", "status", "logs", "doctor", "provision", "demo", "usage import", "invoice",
    "snapshot path", "snapshot query", "key", "quarantine list", "quarantine accept", "quarantine reject", "usage producers", "drill usage-kill",
    "price-fix dry-run", "price-fix list", "price-fix show", "price-fix approve", "price-fix reject", "price-fix apply",
    "invoices list", "invoices show", "invoices close", "invoices adjust", "invoices readopt",
    "dead-letters list", "dead-letters redrive", "dead-letters drop",
    "outbox list", "outbox redrive", "outbox drop",
}  # fmt: skip


TOP = parser()
COMMANDS = commands(TOP)


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) >= EXPECTED


def words(example: str) -> list[str]:
    """Those of the command itself, without what the shell does with its output."""
    split = shlex.shlex(example, posix=True, punctuation_chars=True)
    split.whitespace_split = True
    return list(itertools.takewhile(lambda word: word not in {"|", ">"}, split))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_examples_that_parse(name: str) -> None:
    text = COMMANDS[name].format_help()
    examples = text.partition("examples:\n")[2].replace("\\\n", " ").splitlines()
    own = [
        line.split()
        for line in examples
        if line.split()[: 1 + len(name.split())] == ["headrace", *name.split()]
    ]
    assert own, text
    assert "--data" in text
    for line in examples:
        if line.split()[0] == "headrace":
            TOP.parse_args(words(line)[1:])


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in COMMANDS if " " in name}))
def test_help_of_a_group_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"headrace {name} " in text.partition("examples:")[2]


@pytest.mark.parametrize("words", [["up"], ["demo"], ["drill", "usage-kill"]])
@pytest.mark.parametrize("base", ["-1", "56346", "x", "1.5"])
def test_a_port_base_that_cannot_be_is_a_usage_error(
    words: list[str], base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args([*words, f"--port-base={base}"])
    assert caught.value.code == 2
    assert "is not a number from 0 to 56342" in capsys.readouterr().err


def test_commands_without_an_installation_say_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["doctor"], ["key"], ["logs"], ["status"], ["status", "--json"]):
        assert main([*words, "--data", str(tmp_path / "none")]) == 1
        assert f"headrace up --data {tmp_path}/none" in capsys.readouterr().err
    assert main(["status", "--data", str(tmp_path)]) == 1
    assert main(["status", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_commands_on_a_stopped_installation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, None, None, {})
    for words in (["key"], ["quarantine", "list"], ["quarantine", "accept", "uqr_1"], ["usage", "producers"]):
        assert main([*words, "--data", str(tmp_path)]) == 1
        assert "does not run; start it with `headrace up`" in capsys.readouterr().err
    assert main(["status", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["down", "--data", str(tmp_path)]) == 0
    assert main(["logs", "nobody", "--data", str(tmp_path)]) == 1
    assert "there is no log of 'nobody'" in capsys.readouterr().err


def test_wipe_deletes_only_an_installation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    assert main(["down", "--wipe", "--yes", "--data", str(precious)]) == 1
    assert (precious / "file").exists()
    prepare(tmp_path / "data", None, None, {})
    assert main(["down", "--wipe", "--yes", "--data", str(tmp_path / "data")]) == 0
    assert not (tmp_path / "data").exists()
    assert "deleted" in capsys.readouterr().err


def test_files_of_commands_are_their_users_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        main(["status", "--data", str(tmp_path)])
        (tmp_path / "file").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0


def test_a_wrong_word_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["upp"])
    assert caught.value.code == 2


def test_serve_without_settings_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEADRACE_DATABASE_URL", raising=False)
    assert main(["serve", "billing"]) == 1
    assert "docs/settings.md" in capsys.readouterr().err
