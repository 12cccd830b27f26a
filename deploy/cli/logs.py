"""`headrace logs`: what the components wrote."""

import argparse

from deploy.cli.frame import CommandError, Subparsers, command, installation_of
from deploy.supervisor.logs import follow, tail


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "logs",
        "Print the log of one component, or of all",
        run,
        examples=("headrace logs billing", "headrace logs -f", "headrace logs postgres -n 200"),
        json_output=False,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a name that `headrace status` shows; all where left out"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are added")
    parser.add_argument(
        "-n", "--lines", type=int, default=50, metavar="N", help="lines from the end (default 50)"
    )


def run(arguments: argparse.Namespace) -> int:
    folder = installation_of(arguments).logs
    files = {file.stem: file for file in sorted(folder.glob("*.log"))}
    if arguments.name is not None:
        if arguments.name not in files:
            raise CommandError(
                f"there is no log of {arguments.name!r}; there are: {', '.join(files) or 'none yet'}"
            )
        files = {arguments.name: files[arguments.name]}
    width = max((len(name) for name in files), default=0)
    for name, file in files.items():
        for line in tail(file, arguments.lines):
            print(line if len(files) == 1 else f"{name:{width}} | {line}")
    if arguments.follow:
        for name, line in follow(files):
            print(line if len(files) == 1 else f"{name:{width}} | {line}", flush=True)
    return 0
