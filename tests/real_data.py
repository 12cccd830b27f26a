"""Inputs that the project does not ship: used where they are, named once where they are not.

The hooks below make this module a plugin of pytest, registered by `conftest.py`.
"""

import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("HEADRACE_DATA", REPOSITORY.parent / "shared" / "data"))

_ABSENT: set[str] = set()
_OF_A_LANE = "headrace_absent"


def real_data(*relative: str) -> Path | None:
    """The file or folder below `HEADRACE_DATA`; None where it is absent, which the run then says.

    Call it when a module is collected and define what reads the data only where there is some.

    Raises:
        FileNotFoundError: it is absent and `HEADRACE_REQUIRE_DATA=1` says that it must not be.
    """
    path = DATA.joinpath(*relative)
    if path.exists():
        return path
    if os.environ.get("HEADRACE_REQUIRE_DATA") == "1":
        raise FileNotFoundError(f"{path} is missing and HEADRACE_REQUIRE_DATA=1; set HEADRACE_DATA")
    _ABSENT.add("/".join(relative))
    return None


def left_out() -> list[str]:
    """One line that names what is absent; none where everything is there."""
    if not _ABSENT:
        return []
    return [f"left out, because {DATA} does not have it: tests on {', '.join(sorted(_ABSENT))}"]


def pytest_report_collectionfinish() -> list[str]:
    """What a run without lanes says."""
    return left_out()


def pytest_collection_finish(session: pytest.Session) -> None:
    """A lane of `make test` prints nothing itself: it tells the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_OF_A_LANE] = sorted(_ABSENT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _ABSENT.update(getattr(node, "workeroutput", {}).get(_OF_A_LANE, ()))  # one that crashed has no output


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a run with lanes says: it collects nothing itself, so the first hook is never called there."""
    if config.pluginmanager.hasplugin("dsession"):
        for line in left_out():
            terminalreporter.write_line(line)
