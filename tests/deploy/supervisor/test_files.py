"""The lock, the records and the logs of an installation."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.supervisor.logs import follow, rotate, tail
from deploy.supervisor.processes import identify
from deploy.supervisor.run_folder import AlreadyRunningError, RunFolder, write_atomically


def test_a_second_holder_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    assert second.locked()
    with pytest.raises(AlreadyRunningError, match=rf"pid {os.getpid()}"):
        second.lock()
    first.unlock()
    assert not second.locked()
    second.lock()
    second.unlock()


def test_stale_and_damaged_records_are_no_obstacle(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    own = identify(os.getpid())
    assert own is not None
    run.started("good", own)
    (run.path / "bad.pid.json").write_text("{")
    (run.path / "state.json").write_text("half a docu")
    assert run.recorded() == {"good": own}
    assert not (run.path / "bad.pid.json").exists()
    assert run.state() is None
    run.ended("good")
    assert run.recorded() == {}
    run.unlock()
    assert asdict(own)["pid"] == os.getpid()


def test_secrets_are_written_for_their_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_atomically(file, "x")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_rotation_keeps_the_writer_and_a_bounded_history(tmp_path: Path) -> None:
    file = tmp_path / "one.log"
    with file.open("ab", buffering=0) as writer:
        for number in range(5):
            writer.write(f"{number}\n".encode() * 100)
            assert rotate(file, max_bytes=50, kept=2)
        writer.write(b"last\n")
    assert file.read_text() == "last\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one.log", "one.log.1", "one.log.2"]
    assert tail(tmp_path / "one.log.1", 1) == ["4"]
    assert not rotate(file, max_bytes=50)
    assert not rotate(tmp_path / "absent.log")


def test_tail_of_a_long_log(tmp_path: Path) -> None:
    file = tmp_path / "one.log"
    file.write_text("".join(f"line {number} {'x' * 300}\n" for number in range(1000)))
    assert [line.split(" x")[0] for line in tail(file, 3)] == ["line 997", "line 998", "line 999"]
    assert tail(tmp_path / "absent.log", 3) == []


def test_follow_gives_whole_lines_across_a_rotation(tmp_path: Path) -> None:
    file = tmp_path / "one.log"
    file.write_text("before\n")
    lines = follow({"one": file, "absent": tmp_path / "absent.log"}, poll_seconds=0.01)
    with file.open("ab", buffering=0) as writer:
        writer.write(b"half ")
        writer.write(b"a line\nand h")
        assert next(lines) == ("one", "half a line")
        rotate(file, max_bytes=1)
        writer.write(b"after\n")
        assert next(lines) == ("one", "after")
