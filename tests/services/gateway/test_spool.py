"""Counts on disk: what was written is found again, once, by whoever comes next."""

import fcntl
import os
import resource
from collections import Counter
from pathlib import Path

import pytest

from services.gateway.meter import events
from services.gateway.spool import Spool, read_segment


def _counts(spool: Spool) -> Counter[tuple[str, str, str]]:
    total: Counter[tuple[str, str, str]] = Counter()
    for path in spool.closed:
        total += read_segment(path)[1]
    return total


def test_what_was_recorded_is_in_the_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.record("org_1", "/a", "2xx")
    spool.record("org_1", "/a", "2xx")
    spool.rotate()
    spool.rotate()
    spool.record("org_2", "/a", "5xx")
    spool.rotate()
    assert len(spool.closed) == 2
    assert _counts(spool) == {("org_1", "/a", "2xx"): 2, ("org_2", "/a", "5xx"): 1}
    spool.close()


def test_a_living_process_keeps_its_segments_and_a_dead_one_loses_them(tmp_path: Path) -> None:
    alive = Spool(tmp_path)
    alive.record("org_1", "/a", "2xx")
    later = Spool(tmp_path)
    assert later.adopt() == 0
    alive.close()
    assert later.adopt() == 1
    third = Spool(tmp_path)
    assert third.adopt() == 0, "they belong to the one that adopted them"
    assert _counts(later) == {("org_1", "/a", "2xx"): 1}
    later.close()
    third.close()


def test_empty_folders_of_dead_processes_go(tmp_path: Path) -> None:
    for _ in range(3):
        Spool(tmp_path).close()
    last = Spool(tmp_path)
    assert last.adopt() == 0
    assert len(list(tmp_path.iterdir())) == 1
    last.close()


def test_a_line_that_was_cut_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "1700000000000-x.seg"
    path.write_bytes(b"org_1\t/a\t2xx\norg_1\t/a\t2x")
    assert read_segment(path) == (1_700_000_000_000, Counter({("org_1", "/a", "2xx"): 1}))


def test_a_full_disk_is_an_error_and_harms_no_other_line(tmp_path: Path) -> None:
    """The file size limit stands for the full disk: it, too, takes a part of the line that crosses it."""
    spool = Spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    recorded = 0
    try:
        for _ in range(20):
            try:
                spool.record("org_1", "/a", "2xx")
                recorded += 1
            except OSError:
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.rotate()
    assert 0 < recorded < 20
    assert _counts(spool) == {("org_1", "/a", "2xx"): recorded}
    spool.close()


def test_the_same_segment_makes_the_same_events() -> None:
    counts = {("org_1", "/a", "2xx"): 3, ("org_1", "/a", "4xx"): 1, ("org_2", "/a", "2xx"): 2}
    first = events("1700000000000-x", 1_700_000_000_000, counts)
    again = events("1700000000000-x", 1_700_000_000_000, dict(reversed(counts.items())))
    assert first == again
    ids = [event.id for batch in first.values() for event in batch]
    assert len(set(ids)) == 3
    other = events("1700000000000-y", 1_700_000_000_000, counts)
    assert not {event.id for batch in other.values() for event in batch} & set(ids)


def test_a_folder_is_never_seen_without_its_lock(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (own,) = [folder for folder in tmp_path.iterdir() if not folder.name.startswith(".")]
    descriptor = os.open(own / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    spool.close()
