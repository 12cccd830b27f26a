"""A folder of the cache exists whole or not at all, and is made once, whoever else wants it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.provision.cache import existing, filled, root
from tests.servers import wait_for

Builder = Callable[[], subprocess.Popen[str]]
BUILDER = """
import sys, time
from pathlib import Path
from deploy.provision.cache import filled
counter, go_on = Path(sys.argv[1]), Path(sys.argv[2])
def build(folder):
    with counter.open("a") as file:
        file.write("built\\n")
    (folder / "part").write_text("half")
    while not go_on.exists():
        time.sleep(0.02)
    (folder / "part").write_text("whole")
def report(line):
    with counter.with_name("reports").open("a") as file:
        file.write(line)
print((filled("thing", build, report) / "part").read_text())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, named as a user names it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headrace"


@pytest.fixture
def builder(cache: Path, tmp_path: Path) -> Iterator[Builder]:
    """Starts a process that wants the same folder; ends those that a failed test leaves waiting."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(tmp_path / "counter"), str(tmp_path / "go on")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def built(tmp_path: Path) -> int:
    counter = tmp_path / "counter"
    return counter.read_text().count("built") if counter.exists() else 0


def test_two_processes_build_once(cache: Path, builder: Builder, tmp_path: Path) -> None:
    first = builder()
    wait_for(lambda: built(tmp_path) == 1)
    second = builder()
    reports = tmp_path / "reports"
    wait_for(
        lambda: reports.exists() and reports.read_text() == "thing: another process is making it, waiting"
    )
    assert existing("thing") is None
    (tmp_path / "go on").touch()
    assert [process.communicate(timeout=30)[0] for process in (first, second)] == ["whole\n", "whole\n"]
    assert built(tmp_path) == 1
    assert existing("thing") == cache / "thing"


def test_a_killed_builder_leaves_nothing_that_counts(cache: Path, builder: Builder, tmp_path: Path) -> None:
    first = builder()
    wait_for(lambda: built(tmp_path) == 1)
    first.kill()
    first.communicate(timeout=30)
    assert existing("thing") is None
    (tmp_path / "go on").touch()
    assert builder().communicate(timeout=30)[0] == "whole\n"
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["thing"], (
        "no half-made folder is left"
    )


def test_a_failed_build_is_tried_again(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "read only").mkdir(mode=0o500)
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        filled("thing", fail, print)
    assert filled("thing", lambda folder: (folder / "part").touch(), print) == cache / "thing"
    assert filled("thing", fail, print) == cache / "thing", "made once"


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert root() == tmp_path / ".cache" / "headrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root() == tmp_path / ".cache" / "headrace"
