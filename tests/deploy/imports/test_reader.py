"""Identity and care of the CSV reader."""

from pathlib import Path

import pytest

from core.contracts.usage import UsageEvent
from deploy.imports.mapping import BadRow, ImportFileError, Mapped
from deploy.imports.reader import events, scan
from deploy.imports.times import parse_time

MAPPED = Mapped("file", "at", {"llm.tokens.input": "in", "llm.tokens.output": "out"})


def ids(path: Path) -> list[str]:
    return [item.id for item in events(path, MAPPED, tenant="t") if isinstance(item, UsageEvent)]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_removing_the_first_row_keeps_every_other_identity(tmp_path: Path) -> None:
    lines = ["at,in,out", "2026-01-01 00:00:00,1,2", "2026-01-01 00:00:01,3,4", "2026-01-01 00:00:02,5,6"]
    whole = ids(write(tmp_path / "a.csv", "\n".join(lines)))
    without_first = ids(write(tmp_path / "b.csv", "\n".join([lines[0], *lines[2:]])))
    assert len(set(whole)) == 6
    assert without_first == whole[2:]


def test_identical_rows_are_different_events(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "at,in,out\n" + "2026-01-01 00:00:00,1,2\n" * 3)
    assert len(set(ids(path))) == 6
    assert ids(path) == ids(path)


def test_line_endings_final_newline_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    unix = write(tmp_path / "a.csv", "at,in,out\n2026-01-01 00:00:00.1234567,1,2\n")
    windows = write(tmp_path / "b.csv", "\ufeffat,in,out\r\n2026-01-01 00:00:00.1234567,1,2")
    assert ids(unix) == ids(windows)
    event = next(iter(events(windows, MAPPED, tenant="t")))
    assert isinstance(event, UsageEvent)
    assert event.time.isoformat() == "2026-01-01T00:00:00.123456+00:00"


def test_bad_rows_are_listed_with_their_line_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "at,in,out\n2026-01-01 00:00:00,1,2\nyesterday,1,2\n2026-01-01 00:00:02,-1,2\n\n2026-01-01 00:00:03,1\n"
        '"2026-01-01\n00:00:04",1,2\n2026-01-01 00:00:05,1e9,2\n2026-01-01 00:00:06,7,8\n',
    )
    found = scan(path, MAPPED)
    assert [bad.line for bad in found.bad] == [3, 4, 6, 7, 9]
    assert "column at" in found.bad[0].reason
    assert "column in" in found.bad[1].reason
    assert "2 columns" in found.bad[2].reason
    assert (found.rows, found.events) == (7, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("at,in\n1,2\n", "no column out"),
        ("at,in,out,in\n", "several columns in"),
        ('at,in,out\n"unclosed,1,2\n2026-01-01 00:00:00,1,2\n', "line 2: a quote"),
        ('"at,in,out\n', "line 1"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ImportFileError, match=reason):
        list(events(write(tmp_path / "a.csv", text), MAPPED, tenant="t"))


def test_a_header_that_is_not_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"at,in,out,\xff\xfe\n1,2,3,4\n")
    with pytest.raises(ImportFileError, match="UTF-8"):
        list(events(path, MAPPED, tenant="t"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'"2026-01-01 00:00:00"x,1,2', "expected after"),
        (b"2026-01-01 00:00:00,1,\xff\xfe", "UTF-8"),
        (b"2026-01-01 00:00:00,1," + b"2" * 140_000, "field larger"),
    ],
)
def test_a_row_that_cannot_be_read_is_a_bad_row_alone(tmp_path: Path, row: bytes, reason: str) -> None:
    path, good = tmp_path / "a.csv", b"2026-01-01 00:00:0%d,1,2"
    path.write_bytes(b"\n".join([b"at,in,out", good % 1, row, good % 2, b""]))
    found = scan(path, MAPPED)
    assert [(bad.line, reason in bad.reason) for bad in found.bad] == [(3, True)]
    assert (found.rows, found.events) == (3, 4)


def test_a_bad_row_yields_no_half(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "at,in,out\n2026-01-01 00:00:00,1,x\n")
    assert [type(item) for item in events(path, MAPPED, tenant="t")] == [BadRow]


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16T18:17:03.979960+00:00"),
        ("2023-11-16T18:17:03+08:00", "2023-11-16T10:17:03+00:00"),
        ("2023-11-16T18:17:03-0330", "2023-11-16T21:47:03+00:00"),
        ("2023-11-16 18:17Z", "2023-11-16T18:17:00+00:00"),
    ],
)
def test_times(text: str, instant: str) -> None:
    assert parse_time(text).isoformat() == instant


@pytest.mark.parametrize(
    "text",
    ["", "1700000000", "2023-13-01 00:00:00", "2023-11-16", "16.11.2023 18:17", "２０２３-11-16 18:17"],
)
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)
