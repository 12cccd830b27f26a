"""Every command of the README, as it stands there."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Command
from tests.servers import free_base

REPOSITORY = Path(__file__).parents[2]
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
MAKE_RUN, MAKE_TEST = "make run", "make test"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user of its own: nothing but the port base differs from a fresh start."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "requests.csv").write_text("at,prompt\n2026-01-01T00:00:00Z,12\n2026-01-01T00:00:01Z,30\n")
    model = {"litellm_provider": "azure", "mode": "chat", "input_cost_per_token": 2.5e-06}
    (folder / "model_prices_and_context_window.json").write_text(json.dumps({"azure/gpt-4o": model}))
    return folder


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        "XDG_DATA_HOME": str(home),
        "ARGS": f"--port-base {free_base()}",
        "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def made(home: Path, environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """`make run`, as soon as it has shown its summary."""
    assert MAKE_RUN in COMMANDS
    output = home / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            MAKE_RUN.split(), cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    while "Ctrl-C stops it" not in output.read_text():
        assert process.poll() is None, output.read_text()
        time.sleep(0.2)
    yield process, output
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()


def test_make_run_shows_the_demo_and_how_to_go_on(made: tuple["subprocess.Popen[bytes]", Path]) -> None:
    text = made[1].read_text()
    for part in (
        "equals the invoice to the last digit",
        "48.7459525",
        "owner@",
        "password",
        "curl",
        "/docs",
        "Dagster",
    ):
        assert part in text, part


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in (MAKE_RUN, MAKE_TEST)])
def test_each_command_works(
    made: tuple["subprocess.Popen[bytes]", Path], line: str, home: Path, environment: dict[str, str]
) -> None:
    del made
    done = subprocess.run(
        shlex.split(line),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or done.stderr


def test_make_test_is_what_ci_runs() -> None:
    """It cannot run inside itself; that it runs at all is this test."""
    assert MAKE_TEST in COMMANDS
    assert f"exec {MAKE_TEST}" in (REPOSITORY / ".ci/run").read_text()


def test_ctrl_c_leaves_no_process_and_no_lock(
    made: tuple["subprocess.Popen[bytes]", Path], home: Path
) -> None:
    process, output = made
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    command = Command(home / "headrace" / "embedded")
    assert "nothing is left running" in output.read_text()
    assert command.processes() == []
    assert not [row for row in command.json("status") if row["state"] not in ("stopped",)]
