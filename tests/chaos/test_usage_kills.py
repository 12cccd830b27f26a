"""`headrace drill usage-kill` with a kill of each component."""

import json
from pathlib import Path

import pytest

from deploy.drill.plan import TARGETS
from tests.e2e.command import Command
from tests.servers import free_base


@pytest.mark.timeout(900)  # two imports are published, one of them in a storm, after a first start
def test_an_import_that_is_killed_everywhere_is_the_same_as_an_undisturbed_one(tmp_path: Path) -> None:
    drill, report = Command(tmp_path), tmp_path / "report.json"
    words = ("--kills", str(len(TARGETS["embedded"])), "--requests", "1000", "--port-base", str(free_base()))
    drill("drill", "usage-kill", *words, "--json", str(report))
    found = json.loads(report.read_text())
    assert {kill["target"] for kill in found["kills"]} == set(TARGETS["embedded"])
    for name in ("facts", "cells", "snapshot", "invoice", "unrounded"):
        assert found["calm"][name] == found["storm"][name]
    assert found["calm"]["unrounded"] == found["expected"]
    assert found["calm"]["counted"] == 2000
