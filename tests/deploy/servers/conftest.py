"""What the tests of server recipes share."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.component import Component
from tests.servers import kill, start

Run = Callable[[Component], subprocess.Popen[bytes]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a component and waits until it is ready; ends what a test leaves running."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(component: Component) -> subprocess.Popen[bytes]:
        started.append(start(component, tmp_path / f"{component.name}.log"))
        return started[-1]

    yield begin
    for process in reversed(started):
        kill(process)
