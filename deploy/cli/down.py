"""`headrace down`: stop an installation, and with `--wipe` delete it."""

import argparse
import shutil
import signal
import sys
import time

from deploy.cli.frame import CommandError, Subparsers, command, data_folder, note
from deploy.installation import Installation, InstallationError, load
from deploy.supervisor.processes import send

STOP_SECONDS = 90.0


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "down",
        "Stop the platform; every process of it is gone when this returns",
        run,
        examples=("headrace down", "headrace down --data /tmp/second --wipe --yes"),
        json_output=False,
        profile=True,
    )
    parser.add_argument("--wipe", action="store_true", help="delete the data folder afterwards")
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting")


def run(arguments: argparse.Namespace) -> int:
    folder = data_folder(arguments)
    try:
        installation = load(folder)
    except InstallationError:
        if not arguments.wipe:
            note(f"nothing runs in {folder}")
            return 0
        raise
    run_folder = installation.run
    deadline = time.monotonic() + STOP_SECONDS
    asked = False
    while run_folder.locked():
        launcher = run_folder.launcher()
        if launcher is not None and not asked:
            asked = send(launcher, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise CommandError(f"it did not stop within {STOP_SECONDS:.0f} s; see {folder}/logs")
        time.sleep(0.1)
    _end_leftovers(installation)
    note("stopped" if asked else "nothing was running")
    if arguments.wipe:
        if not arguments.yes and sys.stdin.isatty():
            answer = input(f"delete {folder} with all its data? [y/N] ")
            if answer.strip().lower() not in {"y", "yes"}:
                note("kept")
                return 1
        shutil.rmtree(folder)
        note(f"deleted {folder}")
    return 0


def _end_leftovers(installation: Installation) -> None:
    from deploy.components import components
    from deploy.supervisor.supervisor import end_orphans

    run_folder = installation.run
    run_folder.lock()
    try:
        if orphans := end_orphans(components(installation), run_folder, installation.mark):
            note(f"ended what an earlier launcher left behind: {', '.join(orphans)}")
    finally:
        run_folder.unlock()
