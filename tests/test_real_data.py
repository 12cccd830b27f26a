"""A run without the inputs that the project does not ship says so, with lanes and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import real_data

PYTEST = [
    *(sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", "."),
    *("-p", "xdist.plugin", "-p", "tests.real_data"),
]
READER = """
from tests.real_data import real_data

def test_first() -> None: ...

if real_data("usage", "trace.csv") or real_data("docs"):
    def test_on_real_data() -> None: ...
"""


def test_this_run_would_say_it(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.is_registered(real_data)


@pytest.mark.parametrize("lanes", [[], ["-n", "2"]], ids=["alone", "lanes"])
def test_what_is_absent_is_said_in_one_line(tmp_path: Path, lanes: list[str]) -> None:
    (tmp_path / "test_reader.py").write_text(READER)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HEADRACE"))
    }
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"HEADRACE_DATA": str(tmp_path / "data"), "PYTHONPATH": str(real_data.REPOSITORY)}
    done = subprocess.run(
        [*PYTEST, *lanes], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    said = f"left out, because {tmp_path}/data does not have it: tests on docs, usage/trace.csv"
    assert [line for line in done.stdout.splitlines() if line.startswith("left out")] == [said]
