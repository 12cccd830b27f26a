"""Traces as they are published: JSON lines and tables of rates, imported and landed twice, counted once."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import polars as pl

from assets.usage.landing import land
from assets.usage.schema import EVENTS
from core.contracts.usage import UsageEvent
from core.decimals import total
from deploy.imports.mapping import BadRow, Mapped
from deploy.imports.reader import events, scan
from deploy.imports.times import Relative
from tests.assets.usage.lake import NOW, local_lake, records, slice_of
from tests.real_data import real_data

INPUT, OUTPUT, REQUESTS = "llm.tokens.input", "llm.tokens.output", "api.requests"
START = NOW - timedelta(days=2)
MOONCAKE = real_data("usage", "mooncake_synthetic.jsonl")
SERVEGEN = real_data("usage", "servegen")


def of_requests(source: str) -> Mapped:
    """A line a request: when, in milliseconds, and how many tokens."""
    return Mapped(source, "timestamp", {INPUT: "input_length", OUTPUT: "output_length"}, relative=Relative("ms", START))  # fmt: skip


def of_rates(source: str) -> Mapped:
    """A row each ten minutes: the second it begins, and requests in each of its seconds as floats write them."""
    columns = ("timestamp", "rate", "cv", "distribution", "", "")
    return Mapped(
        source, "timestamp", {REQUESTS: "rate"}, columns, Relative("s", START), round_quantities=True
    )


def imported(files: Iterable[tuple[Path, Mapped]]) -> list[UsageEvent]:
    items = [item for path, mapped in files for item in events(path, mapped, tenant="org_a")]
    assert [item for item in items if isinstance(item, BadRow)] == []
    return [item for item in items if isinstance(item, UsageEvent)]


def sums(found: Sequence[UsageEvent]) -> dict[str, Decimal]:
    return {
        meter: total(Decimal(event.data.quantity) for event in found if event.data.meter == meter)
        for meter in {event.data.meter for event in found}
    }


def counted_once(folder: Path, first: Sequence[UsageEvent], again: Sequence[UsageEvent]) -> None:
    """The first import is counted event by event; of the second everything is a duplicate."""
    lake = local_lake(folder)
    for start, found in ((0, first), (len(first), again)):
        batch = records([event.encode() for event in found], start=start)
        land(lake, folder / "index", slice_of(batch), [batch])
    handle = lake.open(EVENTS)
    assert handle is not None
    rows = pl.DataFrame(handle.to_pyarrow_table(columns=["slice", "fate"]))
    fates = Counter(rows.iter_rows())
    assert fates == {(1, "counted"): len(first), (2, "duplicate"): len(again)}


def test_requests_that_share_milliseconds_are_counted_each_once(tmp_path: Path) -> None:
    """Every third comes with the one before it, every seventh says the same as the one before it."""
    lines = [
        {
            "timestamp": 40 * (said - said % 3),
            "input_length": 900 + said,
            "output_length": said % 5,
            "hash_ids": [said // 7],
        }
        for said in (number - (number % 7 == 6) for number in range(700))
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = imported([(path, of_requests("gpu"))])
    assert len({event.id for event in found}) == 1400
    assert sums(found) == {
        INPUT: 900 * 700 + 699 * 350 - 100,
        OUTPUT: 1400,
    }
    counted_once(tmp_path / "lake", found, imported([(path, of_requests("gpu"))]))


def test_rates_of_several_files_are_counted_each_once(tmp_path: Path) -> None:
    """They share their times, and idle rows are equal: each file is a source of its own."""
    files = list[tuple[Path, Mapped]]()
    for number in range(3):
        path = tmp_path / f"{number}.csv"
        rows = [f"{600 * at},{at % 4 / 3 if at < 9 else 0},0.9,{'Gamma' if at < 9 else ''},1.0,2.5" for at in range(12)]  # fmt: skip
        path.write_bytes("\r\n".join(rows).encode())
        files.append((path, of_rates(f"gpu-{number}")))
    found = imported(files)
    assert len({event.identity for event in found}) == 36
    assert sums(found) == {REQUESTS: 3 * (2 * Decimal("0.333333333") + 2 * Decimal("0.666666667") + 2)}
    assert scan(*files[0]).rounded == 4
    counted_once(tmp_path / "lake", found, imported(files))


if MOONCAKE is not None:

    def test_mooncake(tmp_path: Path) -> None:
        assert MOONCAKE is not None
        found = imported([(MOONCAKE, of_requests("mooncake"))])
        of_input, of_output = ([event for event in found if event.data.meter == meter] for meter in (INPUT, OUTPUT))  # fmt: skip
        assert len({event.id for event in of_input}) == len({event.id for event in of_output}) == 3_993
        assert len({event.time for event in of_input}) == 3_982
        assert sums(found) == {INPUT: 61_194_628, OUTPUT: 595_432}
        counted_once(tmp_path, found, imported([(MOONCAKE, of_requests("mooncake"))]))


if SERVEGEN is not None:

    def test_servegen(tmp_path: Path) -> None:
        assert SERVEGEN is not None
        paths = sorted(SERVEGEN.glob("*.csv"))
        files = [(path, of_rates(path.stem)) for path in paths]
        found = imported(files)
        assert len(paths) == 55
        assert len({event.identity for event in found}) == len(found) == 7_920
        rates = [Decimal(row[1]) for path in paths for row in csv.reader(path.read_text().splitlines())]
        nano = Decimal("1e-9")
        assert sums(found) == {REQUESTS: sum(rate.quantize(nano, ROUND_HALF_EVEN) for rate in rates)}
        scans = [scan(path, mapped) for path, mapped in files]
        assert (sum(one.rows for one in scans), sum(one.rounded for one in scans)) == (7_920, 1_757)
        counted_once(tmp_path, found, imported(files))
