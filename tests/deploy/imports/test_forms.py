"""JSON lines, CSV without a header, times that are counted, and long fractions."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from core.contracts.usage import UsageEvent
from deploy.imports.mapping import BadRow, ImportFileError, Mapped
from deploy.imports.quantities import quantity
from deploy.imports.reader import events, scan
from deploy.imports.times import Relative

ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)
LINES = Mapped(
    "gpu", "at", {"llm.tokens.input": "in", "llm.tokens.output": "out"}, relative=Relative("ms", ORIGIN)
)
NAMELESS = Mapped("gpu", "at", {"api.requests": "rate"}, columns=("at", "rate", "", "model"), relative=Relative("s", ORIGIN))  # fmt: skip


def found(path: Path, mapped: Mapped) -> list[UsageEvent]:
    items = list(events(path, mapped, tenant="t"))
    assert [item for item in items if isinstance(item, BadRow)] == []
    return [item for item in items if isinstance(item, UsageEvent)]


def reasons(path: Path, mapped: Mapped) -> dict[int, str]:
    return {bad.line: bad.reason for bad in scan(path, mapped).bad}


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes(end.join(lines).encode())
    return path


def test_json_lines_that_share_a_time_are_counted_each_once(tmp_path: Path) -> None:
    rows = [
        {"at": 0, "in": 5, "out": 1, "blocks": [1, 2]},
        {"at": 0, "in": 5, "out": 1, "blocks": [1, 3]},
        {"at": 0, "in": 5, "out": 1, "blocks": [1, 3]},
        {"at": 1_022_025, "in": "7.5", "out": 2, "blocks": []},
    ]
    path = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    whole = found(path, LINES)
    assert len({event.id for event in whole}) == 8
    assert [event.data.quantity for event in whole] == ["5", "1", "5", "1", "5", "1", "7.5", "2"]
    assert [whole[at].time.isoformat() for at in (0, 7)] == [
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:17:02.025000+00:00",
    ]
    without_first = found(write(tmp_path / "b.NDJSON", *map(json.dumps, rows[1:])), LINES)
    assert without_first == whole[2:]


def test_the_spelling_of_json_does_not_matter(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", '{"at":0,"in":5,"out":1,"who":"é"}', "")
    spelt = write(
        tmp_path / "b.jsonl", '\ufeff { "who": "\\u00e9", "out": "1",  "in": 5, "at": 0 }', "", end="\r\n"
    )
    assert found(plain, LINES) == found(spelt, LINES)


def test_numbers_of_json_reach_the_event_as_they_are_written(tmp_path: Path) -> None:
    written = ("999999999999999999", "0.123456789", "2.5E-05", "1e3", "0.10")
    path = write(tmp_path / "a.jsonl", *(f'{{"at": 0.5, "in": {number}, "out": 0}}' for number in written))
    amounts = [event.data.quantity for event in found(path, LINES)[::2]]
    assert amounts == ["999999999999999999", "0.123456789", "0.000025", "1000", "0.10"]


def test_each_line_that_is_no_row_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"at": 0, "in": 5, "out": 1}'
    bad = {
        2: (b'{"at": 0, "in": 5', "is not JSON: .* at character"),
        3: (b'[{"at": 0, "in": 5, "out": 1}]', "is not one JSON object"),
        4: (b'{"at": 0, "in": 5}', r"has no field out; it has at, in$"),
        5: (b'{"at": 0, "in": null, "out": 1}', "field in: is neither a number nor text"),
        6: (b'{"at": 0, "in": true, "out": 1}', "field in: is neither a number nor text"),
        7: (b'{"at": 0, "in": 5, "in": 6, "out": 1}', "names a field twice"),
        8: (b'{"at": 0, "in": NaN, "out": 1}', "NaN, which is no number"),
        9: (b'{"at": 0, "in": "\xff", "out": 1}', "is not UTF-8 text"),
        10: (b"[" * 200_000, "is nested too deep"),
        11: (b'{"at": 0, "in": -5, "out": 1}', "column in: .*not negative"),
        12: (b'{"at": 0, "in": ' + b"9" * 5000 + b', "out": 1}', "column in: "),
        13: (b'{"at": 0, "in": 1e99, "out": 1}', "column in: "),
        14: (b'{"at": "2026-01-01 00:00:00", "in": 5, "out": 1}', "column at: is not a number of ms"),
        15: (b'{"at": 1e30, "in": 5, "out": 1}', "column at: lies outside the years"),
        16: (b'{"\\ud800": 0}', r"has no field at, in, out; it has \?"),
        18: (b"{}", "it has none"),
    }
    path.write_bytes(b"\n".join(bad.get(line, (good,))[0] if line != 17 else b"  " for line in range(1, 20)))
    said = scan(path, LINES)
    assert [one.line for one in said.bad] == list(bad)
    for one in said.bad:
        assert re.search(bad[one.line][1], one.reason), one
    assert (said.rows, said.events) == (18, 4)


def test_a_file_that_is_missing_or_told_two_things_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="cannot open"):
        scan(tmp_path / "none.jsonl", LINES)
    with pytest.raises(ImportFileError, match="leave --columns out"):
        scan(write(tmp_path / "a.jsonl", "{}"), replace(LINES, columns=("at", "in", "out")))


def test_columns_without_a_header_get_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,1,x,m", "600,0.25,,m", "600,0.25,,m", end="\r\n")
    named = found(path, NAMELESS)
    assert [(event.time.minute, event.data.quantity) for event in named] == [(0, "1"), (10, "0.25"), (10, "0.25")]  # fmt: skip
    assert len({event.id for event in named}) == 3
    with_header = write(tmp_path / "b.csv", "at,rate,x,model", "0,1,x,m", "600,0.25,,m", "600,0.25,,m")
    assert found(with_header, replace(NAMELESS, columns=())) == named, "names are no part of an identity"
    assert reasons(with_header, NAMELESS) == {1: "column at: is not a number of s since the origin"}
    short = write(tmp_path / "c.csv", "0,1,x,m", "600,0.25")
    assert reasons(short, NAMELESS) == {2: "has 2 columns, --columns names 4"}


def test_a_first_row_that_is_taken_for_a_header_names_the_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,1,x,m", "600,0.25,,m")
    with pytest.raises(ImportFileError, match=r"no column at, rate; it has 0, 1, x, m .*--columns"):
        scan(path, replace(NAMELESS, columns=()))


def test_the_origin_of_numbers_is_never_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "at,rate", "1700000000,1")
    mapped = Mapped("s", "at", {"api.requests": "rate"})
    assert "--time-unit, and from when by --time-origin" in reasons(path, mapped)[2]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    (event,) = found(path, replace(mapped, relative=Relative("s", epoch)))
    assert event.time.isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("unit", "number", "instant"),
    [
        ("s", "0", "2026-01-01T00:00:00+00:00"),
        ("s", "85800", "2026-01-01T23:50:00+00:00"),
        ("s", "0.0000019", "2026-01-01T00:00:00.000001+00:00"),
        ("s", "-0.0000011", "2025-12-31T23:59:59.999998+00:00"),
        ("ms", "1022025.5", "2026-01-01T00:17:02.025500+00:00"),
        ("us", "1e6", "2026-01-01T00:00:01+00:00"),
        ("ns", "1999", "2026-01-01T00:00:00.000001+00:00"),
    ],
)
def test_times_that_are_counted(unit: str, number: str, instant: str) -> None:
    assert Relative(unit, ORIGIN).parse(number).isoformat() == instant


@pytest.mark.parametrize(
    "text", ["", "NaN", "1_0", "0x1", "١", "1e999", "9" * 99, "9" * 101, "2026-01-01 00:00:00"]
)
def test_what_counts_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Relative("s", ORIGIN).parse(text)


def test_the_same_row_with_another_origin_or_rounding_is_the_same_event(tmp_path: Path) -> None:
    """So a mistaken second import is quarantined, not counted twice."""
    path = write(tmp_path / "a.csv", "0,0.5,,m")
    (one,) = found(path, NAMELESS)
    (other,) = found(path, replace(NAMELESS, relative=Relative("ms", datetime(2025, 1, 1, tzinfo=UTC))))
    (rounded,) = found(path, replace(NAMELESS, round_quantities=True))
    assert one.identity == other.identity == rounded.identity
    assert one.time != other.time
    assert one == rounded


def test_long_fractions_are_bad_unless_they_are_to_be_rounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,0.22333333333333333,,m", "600,1.5e-05,,m", "1200,0.25,,m")
    said = reasons(path, NAMELESS)
    assert (
        said[1]
        == "column rate: has 17 digits behind the point, at most 9 are kept; --round-quantities rounds to them"
    )
    assert "no exponent" in said[2]
    rounded = replace(NAMELESS, round_quantities=True)
    assert [event.data.quantity for event in found(path, rounded)] == ["0.223333333", "0.000015", "0.25"]
    assert scan(path, rounded).rounded == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0.0000000005", "0"),
        ("0.0000000015", "0.000000002"),
        ("0.00000000050000001", "0.000000001"),
        ("1.9999999999", "2"),
        ("999999999999999998.9999999999", "999999999999999999"),
    ],
)
def test_rounding_goes_to_the_nearest_and_from_the_middle_to_even(text: str, kept: str) -> None:
    assert quantity(text, rounds=True) == (kept, True)


@pytest.mark.parametrize("text", ["0.1234567890", "1", " 2.50 ", "0.123456789"])
def test_what_loses_nothing_is_not_said_to_be_rounded(text: str) -> None:
    kept, rounded = quantity(text, rounds=True)
    assert not rounded
    assert Decimal(kept) == Decimal(text.strip())


@pytest.mark.parametrize("text", ["-0.0000000001", "01.1234567891", ".1234567891", "1e50", "x", ""])
def test_rounding_makes_no_quantity_of_what_is_none(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.csv", f"0,{text},,m")
    assert list(reasons(path, replace(NAMELESS, round_quantities=True))) == [1]


def test_identities_are_those_of_every_version(tmp_path: Path) -> None:
    """Literals, for what was imported once must be known again."""
    path = tmp_path / "a.csv"
    path.write_bytes('at,in,out,note\r\n2026-01-01 00:00:00,1,2.50,"a, ""b"""\r\n2026-01-01 00:00:00,1,2.50,"a, ""b"""\r\n'
                     "2026-01-01T08:00:01+08:00,3,4,ü".encode())  # fmt: skip
    mapped = Mapped("crm", "at", {"llm.tokens.input": "in", "llm.tokens.output": "out"})
    assert [event.id for event in found(path, mapped)] == [
        "d6231cd1-952a-502b-87a5-67d241dda705",
        "cf2bab66-8975-52e4-b10c-956ed3ac6674",
        "0b2e65ed-f7bd-5135-9fc9-bb52f4018470",
        "73a58271-0027-5380-83c2-b529edb5e4bf",
        "97af597f-a79c-5030-ab76-3ba6bce1a945",
        "eb3d1e42-a7e0-51bc-bf6a-6b0215191371",
    ]
    lines = write(tmp_path / "a.jsonl", '{"at": 0, "in": 1, "out": 2}')
    assert [event.id for event in found(lines, LINES)] == [
        "a1066949-5be5-5c8d-b424-d8ef31255c5e",
        "5c8fb327-d85f-539e-ab4c-1a677b0241d2",
    ]
