"""An import that is interrupted and goes on, against a double of the API."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.client import ApiError, Client
from deploy.imports import runner
from deploy.imports.mapping import Mapped
from deploy.imports.runner import ImportReport, run_import
from deploy.imports.times import Relative
from tests.doubles.ingest import IngestDouble

MAPPED = Mapped("file", "at", {"api.requests": "n"})
REFUSED = frozenset({"3", "12", "14", "27", "39"})
"""Quantities in the first batches and in the last."""


class KilledError(Exception):
    pass


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 events in four batches, and two bad rows."""
    monkeypatch.setattr(runner, "BATCH", 10)
    rows = [f"2026-01-01 00:00:{number:02},{number}" for number in range(40)]
    path = tmp_path / "usage.csv"
    path.write_text("\n".join(["at,n", "yesterday,1", *rows[:25], "2026-01-01 00:00:00,-1", *rows[25:]]))
    return path


def imported(
    api: IngestDouble,
    file: Path,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    with api.serve() as url, Client(url, patience=5) as client:
        return run_import(
            client, file, MAPPED, tenant_id="org_a", tenant_name="acme", checkpoints=folder, progress=progress
        )  # fmt: skip


def interrupted(api: IngestDouble, file: Path, folder: Path, events: int) -> None:
    """An import that is killed when so many events were acknowledged."""

    def progress(done: int, total: int) -> None:
        if done >= events:
            raise KilledError

    with pytest.raises(KilledError):
        imported(api, file, folder, progress)


@pytest.fixture
def undisturbed(file: Path, tmp_path: Path) -> tuple[ImportReport, list[str]]:
    """Its report, and the ids of the events it sent."""
    api = IngestDouble(REFUSED)
    return imported(api, file, tmp_path / "undisturbed"), api.ids


@pytest.mark.parametrize("events", [10, 20, 30, 40])
def test_the_report_after_a_kill_is_that_of_an_undisturbed_import(
    file: Path, tmp_path: Path, undisturbed: tuple[ImportReport, list[str]], events: int
) -> None:
    report, ids = undisturbed
    assert (report.accepted, len(report.refused), len(report.bad_rows)) == (35, 5, 2)
    api, folder = IngestDouble(REFUSED), tmp_path / "imports"
    interrupted(api, file, folder, events)
    assert imported(api, file, folder) == replace(report, resumed_from=events)
    assert set(api.ids) == set(ids)
    assert list(folder.iterdir()) == []


def test_an_import_may_be_interrupted_again_and_again(
    file: Path, tmp_path: Path, undisturbed: tuple[ImportReport, list[str]]
) -> None:
    report, ids = undisturbed
    api, folder = IngestDouble(REFUSED), tmp_path / "imports"
    for events in (10, 20, 30):
        interrupted(api, file, folder, events)
    assert imported(api, file, folder) == replace(report, resumed_from=30)
    assert set(api.ids) == set(ids)


def test_the_report_after_an_error_of_the_api_is_that_of_an_undisturbed_import(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[ImportReport, list[str]]
) -> None:
    monkeypatch.setattr(runner, "IN_FLIGHT", 1)  # batches come in their order
    report, ids = undisturbed
    api, folder = IngestDouble(REFUSED, breaks_at=3), tmp_path / "imports"
    with pytest.raises(ApiError):
        imported(api, file, folder)
    api.breaks_at = None
    assert imported(api, file, folder) == replace(report, resumed_from=20)
    assert sorted(api.ids) == sorted(ids), "nothing was acknowledged twice"


def test_verdicts_written_before_a_kill_and_not_counted_come_once(
    file: Path, tmp_path: Path, undisturbed: tuple[ImportReport, list[str]]
) -> None:
    report, _ = undisturbed
    api, folder = IngestDouble(REFUSED), tmp_path / "imports"
    interrupted(api, file, folder, 10)
    (verdicts,) = folder.glob("*.refused")
    with verdicts.open("a") as torn:
        torn.write('{"index": 2, "id": ')
    interrupted(api, file, folder, 20)
    assert imported(api, file, folder) == replace(report, resumed_from=20)


def test_a_checkpoint_whose_verdicts_are_gone_is_not_trusted(
    file: Path, tmp_path: Path, undisturbed: tuple[ImportReport, list[str]]
) -> None:
    report, ids = undisturbed
    api, folder = IngestDouble(REFUSED), tmp_path / "imports"
    interrupted(api, file, folder, 20)
    (verdicts,) = folder.glob("*.refused")
    verdicts.write_bytes(verdicts.read_bytes().splitlines(keepends=True)[0])
    assert imported(api, file, folder) == report
    assert set(api.ids) == set(ids)


def test_a_checkpoint_from_before_it_kept_verdicts_is_read(file: Path, tmp_path: Path) -> None:
    api, folder = IngestDouble(REFUSED), tmp_path / "imports"
    interrupted(api, file, folder, 20)
    (counts,) = folder.glob("*.json")
    counts.write_text(json.dumps({"acknowledged": 20}))
    report = imported(api, file, folder)
    assert (report.resumed_from, report.accepted) == (20, 38)
    assert [verdict["index"] for verdict in report.refused] == [7, 9]


@pytest.mark.parametrize(
    "other",
    [
        replace(MAPPED, columns=("at", "n")),
        replace(MAPPED, relative=Relative("s", datetime(2026, 1, 1, tzinfo=UTC))),
        replace(MAPPED, relative=Relative("ms", datetime(2026, 1, 1, tzinfo=UTC))),
        replace(MAPPED, relative=Relative("s", datetime(2025, 1, 1, tzinfo=UTC))),
        replace(MAPPED, round_quantities=True),
    ],
)
def test_an_import_that_reads_the_file_in_another_way_does_not_go_on_from_the_first(other: Mapped) -> None:
    assert runner.fingerprint("org_a", other, "0" * 64) != runner.fingerprint("org_a", MAPPED, "0" * 64)


def test_a_checkpoint_of_csv_with_a_header_keeps_its_name() -> None:
    """A literal: an import that an earlier version began goes on."""
    mapped = Mapped("crm", "at", {"llm.tokens.input": "in", "llm.tokens.output": "out"})
    assert runner.fingerprint("org_a", mapped, "ab" * 32) == "6b3e2d9ac944b062cdc82e27bbe111ae"


def test_an_import_of_rates_says_how_many_it_rounded(tmp_path: Path) -> None:
    path = tmp_path / "rates.jsonl"
    path.write_text("".join(f'{{"at": {at}, "n": {at / 3}}}\n' for at in range(4)))
    mapped = replace(MAPPED, relative=Relative("s", datetime(2026, 1, 1, tzinfo=UTC)), round_quantities=True)
    api = IngestDouble()
    with api.serve() as url, Client(url, patience=5) as client:
        report = run_import(client, path, mapped, tenant_id="org_a", tenant_name="acme", checkpoints=tmp_path)
    assert (report.rows, report.accepted, report.rounded, len(set(api.ids))) == (4, 4, 2, 4)
