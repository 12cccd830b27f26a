"""`headrace serve NAME`: one service in the foreground, for hosts where something else supervises."""

import argparse
import importlib.util
import os
import sys

from deploy.cli.frame import CommandError, Subparsers, command, data_folder
from deploy.installation import load

NO_DATABASE = frozenset({"web", "extractive"})
"""Services that read none."""
READS_THE_LAKE = "lookup"
"""The service that needs more packages than `make services` installs."""


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "serve",
        "Run one service in the foreground, with settings from the environment",
        run,
        examples=(
            "headrace serve billing                      # every setting is HEADRACE_… in the environment",
            "headrace serve gateway --data /srv/headrace # settings of an installation on this machine",
        ),
        json_output=False,
    )
    parser.add_argument("name", metavar="NAME", help="a service: gateway, users, billing, relay …")
    parser.add_argument("--port", type=int, help="instead of the service's usual port")


def run(arguments: argparse.Namespace) -> int:
    from deploy.components import SERVICES, environment

    if arguments.name not in SERVICES:
        raise CommandError(f"there is no service {arguments.name!r}; there are: {', '.join(SERVICES)}")
    if arguments.name == READS_THE_LAKE and importlib.util.find_spec("polars") is None:
        raise CommandError(f"{arguments.name} reads the lake: it needs the packages of `make setup`")
    given = dict(os.environ)
    if arguments.data is not None:
        given = {**environment(load(data_folder(arguments)), arguments.name), **given}
    elif arguments.name not in NO_DATABASE and "HEADRACE_DATABASE_URL" not in given:
        raise CommandError(
            "no settings: give --data DIR of an installation on this machine, or set what docs/settings.md lists"
        )
    if arguments.port is not None:
        given["HEADRACE_PORT"] = str(arguments.port)
    # The service takes our place: signals, exit status and pid are its own.
    os.execve(sys.executable, [sys.executable, "-m", f"services.{arguments.name}"], given)  # noqa: S606
