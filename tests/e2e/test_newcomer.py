"""A meter and its price are added in two places, by the README alone, and show up wherever usage does."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.servers import free_base

REPOSITORY: Final = Path(__file__).parents[2]
METER: Final = "compute.gb_seconds"
VALUE: Final = "135"
"""1.5 GB for 90 s."""
MATERIALIZED: Final = """{ assetOrError(assetKey: {path: ["usage_cells"]}) { ... on Asset {
  assetMaterializations(limit: 20) { metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""


def blocks() -> list[str]:
    """What the README tells a newcomer to write and to type: the meter, its price, the commands."""
    section = (REPOSITORY / "README.md").read_text().partition("\n## A meter of your own\n")[2]
    found = re.findall(r"```\w*\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(found) == 3
    return found


def checkout(folder: Path) -> Path:
    """The project as somebody has it who adds a meter: the same files, and the two entries."""
    shutil.copytree(
        REPOSITORY, folder, ignore=shutil.ignore_patterns(".*", "build", "tests", "docs", "__pycache__")
    )
    meter, price, _ = blocks()
    meters, prices = folder / "core" / "meters.py", folder / "deploy" / "prices.toml"
    written = meters.read_text()
    first = written.index('Meter("llm.tokens.input"')
    meters.write_text(written[:first] + meter + written[first:])
    prices.write_text(prices.read_text() + "\n" + price)
    return folder


def until(true: Callable[[], Any], *, seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not show up in time"
        time.sleep(1)
    return found


def test_a_meter_and_its_price_show_up_everywhere(tmp_path: Path) -> None:
    project, base = checkout(tmp_path / "headrace"), free_base()
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "headrace").write_text(
        f'#!/bin/sh\ncd "{project}" && exec "{sys.executable}" -m deploy.cli.main "$@"\n'
    )
    (bin / "headrace").chmod(0o755)
    environment = {
        **os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "COLUMNS": "200",
        "PATH": f"{bin}:{os.environ['PATH']}",
    }  # fmt: skip

    def shell(line: str, *, patient: bool = False) -> str:
        """What a command prints; nothing where a `patient` one is refused still."""
        done = subprocess.run(
            ["sh", "-euc", line], capture_output=True, text=True, env=environment, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert patient or done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def port(usual: int) -> str:
        return f"127.0.0.1:{usual + base}"

    def in_dagster() -> list[int]:
        asked = urllib.request.Request(
            f"http://{port(3070)}/graphql", json.dumps({"query": MATERIALIZED}).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(asked, timeout=10) as answer:
            found = json.load(answer)["data"]["assetOrError"].get("assetMaterializations", [])
        return [
            entry["intValue"]
            for one in found
            for entry in one["metadataEntries"]
            if entry["label"] == f"cells of {METER}"
        ]

    shell(f"headrace up --detach --port-base {base}")
    try:
        send, usage, invoice, snapshot = re.split(
            r"\n(?=\S)", blocks()[2].strip().replace("127.0.0.1:8080", port(8080))
        )
        assert METER in shell(send) or '"accepted"' in shell(send)
        until(lambda: f'"{VALUE}"' in shell(usage), seconds=60)
        until(lambda: METER in shell(invoice))
        until(lambda: VALUE in shell(snapshot, patient=True))  # "it follows within about a minute"
        assert in_dagster() == [2]  # an hour and its day
    finally:
        shell("headrace down")
