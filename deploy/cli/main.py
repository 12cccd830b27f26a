"""The command `headrace`: finds its commands in this package, one module each."""

import argparse
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence

import psycopg2

from core.eventlog.api import LogUnavailableError, UnknownTopicError
from deploy import cli
from deploy.cli.frame import CommandError, note
from deploy.installation import InstallationError
from deploy.supervisor.run_folder import AlreadyRunningError

EXPECTED = (
    CommandError, InstallationError, AlreadyRunningError, OSError, psycopg2.OperationalError, LogUnavailableError,
    UnknownTopicError,
)  # fmt: skip
"""Errors that end a command with a sentence instead of a traceback."""

NOT_COMMANDS = frozenset({"main", "frame"})


def parser() -> argparse.ArgumentParser:
    """The parser with every command of the package."""
    top = argparse.ArgumentParser(
        prog="headrace",
        description="Headrace on this machine: start it, look at it, ask it.",
        epilog="examples:\n  headrace up\n  headrace status\n  headrace demo\n\n`headrace COMMAND --help` shows more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(cli.__path__):
        if module.name not in NOT_COMMANDS and not module.name.startswith("_"):
            importlib.import_module(f"{cli.__name__}.{module.name}").register(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 refused or failed with a message, 2 wrong usage, 3 done but
    for what a person must look at."""
    os.umask(0o077)  # what commands and their processes write holds secrets and usage
    parsed = parser().parse_args(arguments)
    if arguments is None:
        signals_as_interrupts()
    try:
        status: int = parsed.run(parsed)
    except BrokenPipeError:  # `headrace logs | head`
        sys.stderr.close()
        return 0
    except EXPECTED as error:
        note(f"headrace: {said(error)}")
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def said(error: Exception) -> str:
    """What a person reads of an expected error."""
    match error:
        case psycopg2.OperationalError() | LogUnavailableError():
            what = "the event log" if isinstance(error, LogUnavailableError) else "PostgreSQL"
            return f"{what} does not answer; start the platform with `headrace up`, or see `headrace status`"
        case UnknownTopicError():
            return f"topic {error.topic!r} does not exist; `headrace up` makes it"
        case _:
            return str(error)


def signals_as_interrupts() -> None:
    """INT, TERM and HUP end a command the same way, so that what it started is ended with it.

    INT explicitly: a shell starts background jobs with it ignored. `up` replaces these once it supervises.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
