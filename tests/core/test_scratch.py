"""Folders for work in progress: gone with the block, and after a SIGKILL with the next one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.scratch import scratch

HOLDER = """
import sys
from core.scratch import scratch
with scratch("test") as folder:
    (folder / "usage").write_text("of somebody")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@contextmanager
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that has one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_is_ones_own_and_goes_with_the_block(temporary: Path) -> None:
    with scratch("test") as one, scratch("test") as other:
        assert one != other
        assert (one.parent, one.stat().st_mode & 0o777) == (temporary, 0o700)
        (one / "file").write_text("x")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(temporary: Path) -> None:
    (temporary / "headrace-other-1").mkdir()
    with holder() as (killed, left), holder() as (_, used):
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert (left / "usage").exists()
        with scratch("test") as folder:
            assert {path.name for path in temporary.iterdir()} == {folder.name, used.name, "headrace-other-1"}
        assert (used / "usage").exists()
