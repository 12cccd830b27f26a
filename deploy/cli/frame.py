"""What every command shares: options, output, errors. A command is one module of this package.

    def register(subparsers: Subparsers) -> None:
        parser = command(subparsers, "key", "Print an API key", run, examples=("headrace key",))
        parser.add_argument("--new", action="store_true", help="…")

    def run(arguments: argparse.Namespace) -> int: ...

`main` finds the module by itself. Import what is heavy inside `run`: all modules load for `--help`.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from deploy.installation import PROFILES, Installation, load, resolve
from deploy.ports import LARGEST_BASE

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class CommandError(Exception):
    """What the user did wrong or should do now; printed without a traceback, exit status 1."""


def command(
    subparsers: Subparsers,
    name: str,
    what: str,
    run: Callable[[argparse.Namespace], int],
    *,
    examples: Sequence[str],
    json_output: bool = True,
    profile: bool = False,
) -> argparse.ArgumentParser:
    """Add a command with `--data`, `--json` (where programs read it) and examples in its help."""
    parser = subparsers.add_parser(
        name,
        help=what,
        description=what,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the installation (default: below the user's data folder)",
    )
    if profile:
        parser.add_argument("--profile", choices=PROFILES, help="embedded (default) or stack: real servers")
    if json_output:
        parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(run=run)
    return parser


def command_group(subparsers: Subparsers, name: str, what: str, *, examples: Sequence[str]) -> Subparsers:
    """Add `headrace NAME COMMAND`; returns where its commands go."""
    parser = subparsers.add_parser(
        name,
        help=what,
        description=what,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def port_base(text: str) -> int:
    """Type of `--port-base`. Raises: ArgumentTypeError, a usage error."""
    if not text.isascii() or not text.isdigit() or int(text) > LARGEST_BASE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {LARGEST_BASE}")
    return int(text)


def data_folder(arguments: argparse.Namespace) -> Path:
    """The folder that `--data` or `--profile` or the defaults mean."""
    return resolve(arguments.data, getattr(arguments, "profile", None))


def installation_of(arguments: argparse.Namespace) -> Installation:
    """The installation that a command works on.

    Raises:
        InstallationError: where there is none.
    """
    return load(data_folder(arguments))


def running_installation(arguments: argparse.Namespace) -> Installation:
    """The same, where the command needs its services.

    Raises:
        CommandError: where it does not run.
    """
    installation = installation_of(arguments)
    if not installation.run.locked():
        raise CommandError(f"{installation.folder} does not run; start it with `headrace up`")
    return installation


def in_transaction(arguments: argparse.Namespace, work: "Callable[[AsyncConnection], Awaitable[T]]") -> T:
    """What `work` returns; it sees all organisations (role `system`), in one transaction.

    Raises:
        InstallationError: where there is no installation.
        OSError: where its database does not answer.
    """
    from core.database import Database
    from core.settings import DatabaseSettings
    from deploy.session import settings_of

    settings = settings_of(installation_of(arguments), DatabaseSettings)

    async def run() -> T:
        database = Database(settings, role="system")
        try:
            async with database.writer() as connection:
                return await work(connection)
        finally:
            await database.close()

    return asyncio.run(run())


def value_console() -> "Console":
    """Prints values that others gave: what stands in brackets there is no markup."""
    from rich.console import Console

    return Console(markup=False)


def no_tenant(slug: str) -> str:
    """What to tell where nobody has this slug."""
    return f"there is no tenant {slug!r}; check its spelling, or make it with POST /api/v1/organizations"


def ask(
    arguments: argparse.Namespace,
    method: str,
    path: str,
    params: Mapping[str, str] | None = None,
    *,
    body: object = None,
    tenant: str = "",
) -> Any:
    """What the API answers the owner of the installation, for a tenant (that of the arguments where none is given).

    Args:
        method: GET, POST, LIST for all pages of a list, or TEXT for what is no JSON.

    Raises:
        CommandError: there is no such tenant, or the API refuses or is away.
    """
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    owner = operator(running_installation(arguments))
    try:
        wanted = tenant or arguments.tenant
        if owner.find_tenant(wanted) is None:
            raise CommandError(no_tenant(wanted))
        named = {"tenant": wanted, **(params or {})}
        client = owner.client()
        if method == "POST":
            return client.post(path, body, **named)
        return {"GET": client.get, "LIST": client.listed, "TEXT": client.text}[method](path, **named)
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error


def print_json(value: Any) -> None:
    """For programs: one document on stdout."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


def note(text: str) -> None:
    """For people, beside the output of programs."""
    print(text, file=sys.stderr, flush=True)
