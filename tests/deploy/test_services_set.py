"""The packages of a host that only serves are enough to serve, and each set holds the one before it."""

import subprocess
import sys

import pytest

from deploy import bootstrap
from deploy.components import SERVICES
from tests.real_data import REPOSITORY

LOOK = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
from packaging.utils import canonicalize_name

locked, services = set(sys.argv[1].split()), sys.argv[2].split()
missing = {module for module, holders in packages_distributions().items()
           if not {canonicalize_name(holder) for holder in holders} & locked}

class OnlyTheLock:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"{name} is not in the lock", name=name)

sys.meta_path.insert(0, OnlyTheLock())
for service in services:
    package = importlib.import_module(f"services.{service}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from deploy.cli.main import main
sys.exit(main(["serve", "nobody"]))
"""


def locked(packages: str) -> set[str]:
    lines = (REPOSITORY / f"requirements/{packages}.txt").read_text().splitlines()
    return {line.partition("==")[0] for line in lines if "==" in line and line[0].isalnum()}


def test_each_set_holds_the_ones_before_it() -> None:
    services, run, dev = map(locked, bootstrap.SETS)
    assert services < run < dev
    assert not services & {"dagster", "polars", "duckdb", "deltalake", "pyarrow", "great-expectations"}


@pytest.mark.parametrize("extra", [(), ("lookup",)])
def test_lean_services_and_serve_import_nothing_else(extra: tuple[str, ...]) -> None:
    """The lookup reads the lake: it needs the next set, which shows that what is left out is really away."""
    lean = extra or tuple(name for name in SERVICES if name != "lookup")
    done = subprocess.run(
        [sys.executable, "-c", LOOK, " ".join(locked("services") | {"headrace"}), " ".join(lean)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert ("polars is not in the lock" if extra else "there is no service 'nobody'") in done.stderr, (
        done.stderr
    )
