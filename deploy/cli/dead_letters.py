"""`headrace dead-letters list|redrive|drop`: messages that a queue could not get done."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from core.topology import QUEUES, queue_names
from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    installation_of,
    print_json,
    value_console,
)

T = TypeVar("T")


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "dead-letters",
        "Messages that were given up after their last attempt",
        examples=(
            "headrace dead-letters list",
            "headrace dead-letters redrive document.index",
            "headrace dead-letters drop document.index mq_…",
        ),
    )
    listing = command(
        group,
        "list",
        "List dead letters with their queue, reason, attempts and when they were first seen",
        run_list,
        examples=("headrace dead-letters list", "headrace dead-letters list document.index --json"),
    )
    listing.add_argument("queue", nargs="?", help="only of this queue (default: of all)")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most N of each queue (50)")
    for name, what, run, one in (
        ("redrive", "Send dead letters again, with all their attempts before them", run_redrive, "send"),
        ("drop", "Delete dead letters for good", run_drop, "delete"),
    ):
        parser = command(
            group,
            name,
            what,
            run,
            examples=(f"headrace dead-letters {name} document.index mq_…", f"headrace dead-letters {name} document.index --all"),
        )  # fmt: skip
        parser.add_argument("queue", help="the queue they were meant for, such as document.index")
        parser.add_argument("ids", nargs="*", help="ids as `list` shows them")
        parser.add_argument(
            "--all",
            action="store_true",
            help=f"{one} the oldest 10,000 (at most 64 MB) of the queue; again for the rest",
        )


def run_list(arguments: argparse.Namespace) -> int:
    from core.messaging import dead_letters
    from core.queue.api import WorkQueue

    names = [arguments.queue] if arguments.queue else queue_names()
    _known(names)

    async def work(queue: WorkQueue) -> list[dead_letters.DeadLetter]:
        return await dead_letters.letters(queue, names, arguments.limit, tenant=None)

    found = _with_queue(arguments, work)
    if arguments.json:
        print_json([_row(asdict(letter)) for letter in found])
        return 0
    from rich.table import Table

    table = Table(
        "queue", "id", "tenant", "attempts", "first seen", "died", "reason", box=None, pad_edge=False
    )
    for letter in found:
        row = _row(asdict(letter))
        table.add_row(
            letter.queue, letter.id, letter.tenant, str(letter.attempts), row["first_seen"],
            row["died_at"] or "", letter.reason,
        )  # fmt: skip
    value_console().print(table if found else "no dead letters")
    return 0


def run_redrive(arguments: argparse.Namespace) -> int:
    from core.messaging import dead_letters

    return _act(arguments, dead_letters.redrive, "redriven")


def run_drop(arguments: argparse.Namespace) -> int:
    from core.messaging import dead_letters

    return _act(arguments, dead_letters.drop, "dropped")


def _act(arguments: argparse.Namespace, act: Callable[..., Awaitable[int]], done: str) -> int:
    _known([arguments.queue])
    if bool(arguments.ids) == arguments.all:
        raise CommandError("name ids (see `headrace dead-letters list`), or say --all")
    ids = None if arguments.all else frozenset(arguments.ids)
    count = _with_queue(arguments, lambda queue: act(queue, arguments.queue, ids, tenant=None))
    if arguments.json:
        print_json({done: count})
    else:
        print(f"{count} {done}")
    if ids is not None and count < len(ids):
        raise CommandError(f"{len(ids) - count} of the ids are no dead letter of {arguments.queue}")
    return 0


def _with_queue(arguments: argparse.Namespace, work: Callable[..., Awaitable[T]]) -> T:
    from core.queue import open_queue
    from core.queue.api import QueueUnavailableError
    from core.settings import DatabaseSettings, QueueSettings
    from deploy.session import settings_of

    installation = installation_of(arguments)

    async def run() -> T:
        opened = open_queue(
            settings_of(installation, QueueSettings), settings_of(installation, DatabaseSettings)
        )
        async with opened as queue:
            return await work(queue)

    try:
        return asyncio.run(run())
    except QueueUnavailableError as error:
        raise CommandError(str(error)) from error


def _known(names: Sequence[str]) -> None:
    for name in names:
        if not any(family.covers(name) for family in QUEUES.values()):
            raise CommandError(f"there is no queue {name!r}; the queues are {', '.join(queue_names())}")


def _row(values: dict[str, object]) -> dict[str, str]:
    from datetime import datetime

    from core.clock import rfc3339

    return {
        name: rfc3339(value) if isinstance(value, datetime) else value  # type: ignore[misc]
        for name, value in values.items()
    }
