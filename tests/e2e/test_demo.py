"""The main job, on a whole platform of each profile, by the command alone."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import oracle, sample
from deploy.installation import load
from deploy.provision import Programs
from tests.e2e import pictures
from tests.e2e.command import Command
from tests.real_data import real_data
from tests.servers import free_base

AZURE = real_data("usage", "azure_2023_code.csv")


@pytest.fixture(scope="module", params=["embedded", pytest.param("stack", marks=pytest.mark.stack)])
def headrace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp(request.param) / "data")
    command("up", "--profile", request.param, "--port-base", str(free_base()), "--detach")
    yield command
    command("down")
    assert command.processes() == []


def demo(headrace: Command, tmp_path: Path, *words: str) -> dict[str, Any]:
    headrace("demo", "--json", str(tmp_path / "out.json"), *words)
    figures: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert figures["usage"] == figures["expected"]
    assert figures["usage"]["landed"] == sum(n for name, n in figures["usage"].items() if name != "landed")
    assert figures["snapshot"]["unrounded"] == figures["invoice"]["unrounded"]
    assert figures["quota_visible_seconds"] > 0
    assert len(figures["answers"]) == 6
    for answer in figures["answers"]:
        assert answer["citations"], answer
        assert answer["citations_verified"], answer
        assert answer["deltas"] > 1, answer
    assert figures["stream_sha256"]["sse"] == figures["stream_sha256"]["websocket"]
    assert {"en.md", "zh.md", "handbook.pdf"} <= figures["documents"].keys()
    assert set(figures["documents"].values()) == {"indexed"}
    return figures


@pytest.mark.timeout(900)  # two whole demos, behind a first start of every server
def test_the_sample_twice_counts_once(headrace: Command, tmp_path: Path) -> None:
    truth = oracle.read_trace(sample.write(tmp_path / "sample.csv"))
    first, second = demo(headrace, tmp_path), demo(headrace, tmp_path)
    for figures in (first, second):
        assert figures["usage"]["counted"] == truth.events == 20_000
        # 44.7441125 and 4.00184: each line is rounded once, the total is their sum.
        assert figures["invoice"] == {"unrounded": truth.unrounded, "total": "48.74", "currency": "USD"}
    assert first["usage"]["duplicates"] == 1_000
    assert second["usage"]["duplicates"] == 1_000 + 21_000


if AZURE is not None:

    def test_a_real_trace_costs_what_is_known(headrace: Command, tmp_path: Path) -> None:
        figures = demo(headrace, tmp_path, "--trace", str(AZURE))
        assert figures["usage"]["counted"] == 17_638
        assert figures["invoice"] == {"unrounded": "47.608895", "total": "47.61", "currency": "USD"}


def test_what_was_not_counted_is_listed_with_its_reason(headrace: Command) -> None:
    found = headrace.json("quarantine", "list", "--tenant", "demo-sample", "--limit", "1000")
    codes = {(row["fate"], row["code"]) for row in found}
    assert {
        ("quarantined", "conflict"),
        ("quarantined", "out_of_limits"),
        ("rejected", "unreadable"),
    } <= codes
    assert {row["tenant"] for row in found} == {"demo-sample"}


def test_an_import_keeps_identities_and_names_bad_rows(headrace: Command, tmp_path: Path) -> None:
    rows = [f"2024-03-01 10:00:{second:02},{second},{second * 2}" for second in range(30)]
    whole, shorter = tmp_path / "whole.csv", tmp_path / "shorter.csv"
    whole.write_bytes("\r\n".join(["at,in,out", *rows, "yesterday,1,2"]).encode())
    shorter.write_text("\n".join(["at,in,out", *rows[1:]]))
    words = ("--tenant", "acme", "--source", "crm", "--time-column", "at")
    meters = ("--meter", "llm.tokens.input=in", "--meter", "llm.tokens.output=out")
    for file, events, bad in ((whole, 60, [32]), (whole, 60, [32]), (shorter, 58, [])):
        headrace("usage", "import", str(file), *words, *meters, "--json", str(tmp_path / "report.json"))
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["accepted"], report["events"]) == (events, events)
        assert [row["line"] for row in report["bad_rows"]] == bad
    expected = oracle.Trace(30, sum(range(30)), sum(range(0, 60, 2))).unrounded
    while len((draft := headrace.json("invoice", "--tenant", "acme"))["lines"]) < 2:
        assert draft["unrounded"] == "0"
    assert draft["unrounded"] == expected
    assert Decimal(draft["total"]) == sum(Decimal(line["amount"]) for line in draft["lines"])


def test_the_pages_take_a_document_and_open_a_citation_at_its_place(
    headrace: Command, stack_programs: Programs, tmp_path: Path
) -> None:
    """Uploaded, indexed, asked about in two languages: the console stays silent, the source shows the quote."""
    assert stack_programs.chromium.exists()
    pictures.photograph(load(headrace.data), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        file.name for file in pictures.PICTURES.glob("*.png")
    }


def test_a_second_up_on_the_folder_is_refused(headrace: Command) -> None:
    assert "already" in headrace("up", "--detach", refused=True)
    assert all(row["state"] == "ready" for row in headrace.json("status"))
