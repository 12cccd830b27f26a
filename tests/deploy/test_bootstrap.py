"""From a clone to an environment: by hash, once, and never taking tools away.

A clone with locks of one package each, so that the real uv has little to do.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import bootstrap

REPOSITORY = Path(__file__).parents[2]


def pinned(name: str) -> str:
    """The lines of one package in the project's own lock."""
    found = re.search(rf"^{name}==.*?(?=^\S)", (REPOSITORY / "requirements/dev.txt").read_text(), re.M | re.S)
    assert found is not None
    return "".join(line for line in found.group().splitlines(True) if not line.lstrip().startswith("#"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in (
        "deploy/bootstrap.py",
        "pyproject.toml",
        "README.md",
        "requirements/build.txt",
        "requirements/uv.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "requirements/run.txt").write_text(pinned("six"))
    (tmp_path / "requirements/dev.txt").write_text(pinned("six") + pinned("iniconfig"))
    return tmp_path


def start(clone: Path, packages: str) -> "subprocess.Popen[str]":
    uv = bootstrap.present_uv()
    path = os.pathsep.join([*([str(Path(uv).parent)] if uv else []), os.environ["PATH"]])
    return subprocess.Popen(
        [sys.executable, str(clone / "deploy/bootstrap.py"), packages],
        env={**os.environ, "PATH": path}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def run(clone: Path, packages: str) -> tuple[int, str]:
    process = start(clone, packages)
    _, said = process.communicate()
    return process.returncode, said


def packages_of(clone: Path) -> set[str]:
    found = (clone / ".venv/lib/python3.11/site-packages").glob("*.dist-info")
    return {entry.name.partition("-")[0] for entry in found}


def test_installs_once_and_says_what_went_where(clone: Path) -> None:
    status, said = run(clone, "run")
    assert status == 0, said
    assert packages_of(clone) == {"six", "headrace"}
    assert str(clone / ".venv") in said
    assert "nothing else was changed" in said
    assert run(clone, "run") == (0, "")


def test_a_larger_set_replaces_a_smaller_one_and_stays(clone: Path) -> None:
    assert run(clone, "dev")[0] == 0
    assert packages_of(clone) == {"six", "iniconfig", "headrace"}
    assert run(clone, "run") == (0, "")
    (clone / "requirements/dev.txt").write_text(pinned("iniconfig"))
    assert run(clone, "run")[0] == 0
    assert packages_of(clone) == {"iniconfig", "headrace"}


def test_what_does_not_match_its_hash_is_refused_and_tried_again(clone: Path) -> None:
    lock = clone / "requirements/run.txt"
    good = lock.read_text()
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", good))
    status, said = run(clone, "run")
    assert status == 1
    assert "pip sync" in said
    assert "failed; the lines above say why" in said
    lock.write_text(good)
    assert run(clone, "run")[0] == 0


def test_two_at_once_do_not_disturb_each_other(clone: Path) -> None:
    both = [start(clone, "run"), start(clone, "dev")]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert packages_of(clone) >= {"six", "headrace"}


def test_wrong_words_are_a_usage_error(clone: Path) -> None:
    status, said = run(clone, "everything")
    assert status == 2
    assert "services|run|dev" in said
