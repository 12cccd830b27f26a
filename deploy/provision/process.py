"""Long commands with a line of progress every few seconds."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.provision.cache import Report

_EVERY_SECONDS = 5


class ProvisioningError(RuntimeError):
    """Something could not be provided; the text says what, why and how to get it."""


def run(
    argv: Sequence[str | Path], *, label: str, report: Report, env: Mapping[str, str], unit: str = "lines"
) -> list[str]:
    """Run to the end and return the lines of its output, reporting their number (as `unit`) on the way.

    Raises:
        ProvisioningError: with the end of the output where the command fails.
    """
    process = subprocess.Popen(
        [str(part) for part in argv], env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    reader = threading.Thread(target=_collect, args=(process, lines), daemon=True)
    reader.start()
    started = time.monotonic()
    try:
        while True:
            try:
                process.wait(_EVERY_SECONDS)
                break
            except subprocess.TimeoutExpired:
                report(f"{label}: {time.monotonic() - started:.0f} s, {len(lines)} {unit}")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    reader.join()
    if process.returncode != 0:
        end = "\n".join(lines[-20:])
        raise ProvisioningError(f"{label}: `{argv[0]}` failed with status {process.returncode}:\n{end}")
    return lines


def _collect(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        lines.extend(line.rstrip() for line in process.stdout)
