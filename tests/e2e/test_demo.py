"""The main job on a whole platform of each profile, by the commands of the README alone."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core.personal_data import Kind, places
from core.topology import TOPICS
from deploy.demo import oracle, sample
from deploy.installation import load
from deploy.provision import Programs
from deploy.session import operator
from tests.e2e import holdings, pictures, traffic
from tests.e2e.command import Command
from tests.real_data import REPOSITORY, real_data
from tests.servers import free_base

AZURE = real_data("usage", "azure_2023_code.csv")


COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
MAKE_RUN, MAKE_TEST, DEMO = "make run", "make test", "headrace demo"


@dataclass(frozen=True, slots=True)
class Made(Command):
    """A platform on which the demo has run once."""

    environment: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""
    """What `make run` printed."""


@pytest.fixture(scope="module", params=["embedded", pytest.param("stack", marks=pytest.mark.stack)])
def headrace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """By `make run` alone, as a newcomer has it, or `up` on the real servers."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        with make_run(folder) as made:
            yield made
    else:
        made = Made(folder / "data")
        made("up", "--profile", "stack", "--port-base", str(free_base()), "--detach")
        try:
            made("demo")
            yield made
        finally:
            made("down")
    assert made.processes() == []


@contextmanager
def make_run(home: Path) -> Iterator[Made]:
    """A user of its own: nothing but the port base differs from a fresh start. Ends it with Ctrl-C."""
    assert {MAKE_RUN, MAKE_TEST, DEMO} <= set(COMMANDS)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        "XDG_DATA_HOME": str(home),
        "ARGS": f"--port-base {free_base()}",
        "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    output = home / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            MAKE_RUN.split(), cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        while "Ctrl-C stops it" not in output.read_text():
            assert process.poll() is None, output.read_text()
            time.sleep(0.2)
        made = Made(home / "headrace" / "embedded", environment, output.read_text())
        yield made
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    assert "nothing is left running" in output.read_text()
    assert not [row for row in made.json("status") if row["state"] != "stopped"]


def demo(headrace: Made, tmp_path: Path, *words: str) -> dict[str, Any]:
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


embedded = pytest.mark.parametrize("headrace", ["embedded"], indirect=True)


@embedded
def test_make_run_shows_the_demo_and_how_to_go_on(headrace: Made) -> None:
    assert "did not end well" not in headrace.shown
    for part in (
        "equals the invoice to the last digit",
        "each tenant's answer holds its own marker, and no search finds the other's",
        "48.7459525",
        "owner@",
        "password",
        "curl",
        "/docs",
        "Dagster",
    ):
        assert part in headrace.shown, part


@pytest.mark.timeout(900)  # two whole demos, behind a first start of every server
def test_the_sample_twice_counts_once(headrace: Made, tmp_path: Path) -> None:
    truth = oracle.read_trace(sample.write(tmp_path / "sample.csv"))
    figures = demo(headrace, tmp_path)
    assert figures["usage"]["counted"] == truth.events == 20_000
    # 44.7441125 and 4.00184: each line is rounded once, the total is their sum.
    assert figures["invoice"] == {"unrounded": truth.unrounded, "total": "48.74", "currency": "USD"}
    assert figures["usage"]["duplicates"] == 1_000 + 21_000


async def test_every_message_fits_the_asyncapi_document(headrace: Made) -> None:
    installation = load(headrace.data)
    found = await traffic.topics(installation)
    assert {name for name, types in found.items() if types} == traffic.SENT & TOPICS.keys()
    assert {"run.queued", "tool_result", "message.delta", "message.completed", "usage", "run.completed"} <= (
        found["agent.events"].keys()
    )
    assert traffic.SENT - TOPICS.keys() == {"document.index"}
    sent = json.loads((await traffic.queued(installation, "document.index")).body)
    assert sent["version"] == 1


async def test_the_data_map_names_all_that_the_servers_hold(headrace: Made) -> None:
    installation = load(headrace.data)
    headrace("quarantine", "list", "--json")  # a request is counted for a minute
    keys = await holdings.keys(installation)
    assert [key for key in keys if key.startswith("headrace:requests:")]
    assert holdings.unmapped(keys) == []
    assert await holdings.topics(installation) == places(Kind.TOPIC)
    assert await holdings.buckets(installation) == places(Kind.BUCKET)


if AZURE is not None:

    @pytest.mark.timeout(900)
    def test_a_real_trace_costs_what_is_known(headrace: Made, tmp_path: Path) -> None:
        """Twice on the real servers; the sample comes twice to both."""
        for _ in range(2 if load(headrace.data).profile == "stack" else 1):
            figures = demo(headrace, tmp_path, "--trace", str(AZURE))
            assert figures["usage"]["counted"] == 17_638
            assert figures["invoice"] == {"unrounded": "47.608895", "total": "47.61", "currency": "USD"}


def test_what_was_not_counted_is_listed_with_its_reason(headrace: Made) -> None:
    found = headrace.json("quarantine", "list", "--tenant", "demo-sample", "--limit", "1000")
    codes = {(row["fate"], row["code"]) for row in found}
    assert {
        ("quarantined", "conflict"),
        ("quarantined", "out_of_limits"),
        ("rejected", "unreadable"),
    } <= codes
    assert {row["tenant"] for row in found} == {"demo-sample"}


def test_an_import_keeps_identities_and_names_bad_rows(headrace: Made, tmp_path: Path) -> None:
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
    headrace: Made, stack_programs: Programs, tmp_path: Path
) -> None:
    """Uploaded, indexed, asked about in two languages: the console stays silent, the source shows the quote."""
    assert stack_programs.chromium.exists()
    pictures.photograph(load(headrace.data), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        file.name for file in pictures.PICTURES.glob("*.png")
    }


def test_what_was_done_is_in_the_lake_for_auditors(headrace: Made) -> None:
    """By the sensor, the job and its blocking check; "in about two minutes" after the demo made the organisation."""
    installation = load(headrace.data)
    owner = operator(installation)
    with owner.client():
        tenant = owner.find_tenant("demo-sample")
    assert tenant is not None
    while not (found := holdings.audited(installation, tenant)):
        time.sleep(1)
    made = [row for row in found if row["action"] == "organization.create"]
    assert made == [{"tenant": tenant, "action": "organization.create", "target": tenant, "fate": "counted"}]
    while not holdings.ENDED.issuperset((checks := holdings.checked(installation)).values()):
        time.sleep(1)
    assert checks == {"complete": "SUCCEEDED"}


def test_a_second_up_on_the_folder_is_refused(headrace: Made) -> None:
    log = headrace.data / "logs" / "launcher.log"
    before = log.read_text() if log.exists() else ""  # written by one in the background only
    assert "already" in headrace("up", "--detach", refused=True)
    assert log.read_text().startswith(before), "the log of the launcher that runs was removed"
    assert all(row["state"] == "ready" for row in headrace.json("status"))


@embedded
@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in (MAKE_RUN, MAKE_TEST, DEMO)])
def test_each_other_command_of_the_readme_works(headrace: Made, line: str) -> None:
    home = headrace.data.parents[1]
    (home / "requests.csv").write_text("at,prompt\n2026-01-01T00:00:00Z,12\n2026-01-01T00:00:01Z,30\n")
    (home / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": 12}\n{"timestamp": 40, "input_length": 30}\n'
    )
    model = {"litellm_provider": "azure", "mode": "chat", "input_cost_per_token": 2.5e-06}
    (home / "model_prices_and_context_window.json").write_text(json.dumps({"azure/gpt-4o": model}))
    done = subprocess.run(
        shlex.split(line), cwd=home, env=headrace.environment, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or done.stderr


def test_make_test_is_what_ci_runs() -> None:
    """It cannot run inside itself; that it runs at all is this test."""
    assert f"exec {MAKE_TEST}" in (REPOSITORY / ".ci/run").read_text()
