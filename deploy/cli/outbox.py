"""`headrace outbox list|redrive|drop`: what the event log or every queue refused for good."""

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    in_transaction,
    print_json,
    value_console,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

KINDS: Final = ("records", "messages")
"""For the event log; for the queues."""
MOST: Final = 10_000


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "outbox",
        "Records that the event log, and messages that every queue refused for good",
        examples=(
            "headrace outbox list",
            "headrace outbox redrive records --all",
            "headrace outbox drop messages 12",
        ),
    )
    listing = command(
        group,
        "list",
        "List what was refused with where it was meant to go, code and reason, oldest first",
        run_list,
        examples=("headrace outbox list", "headrace outbox list --limit 500 --json"),
    )
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most N of each kind (50)")
    for name, what, run in (
        ("redrive", "Put what was refused back into its outbox, behind what waits there", run_redrive),
        ("drop", "Delete what was refused for good", run_drop),
    ):
        parser = command(
            group,
            name,
            what,
            run,
            examples=(f"headrace outbox {name} records 12 13", f"headrace outbox {name} messages --all"),
        )
        parser.add_argument("kind", choices=KINDS, help="records of the event log, or messages of the queues")
        parser.add_argument("ids", nargs="*", type=int, metavar="ID", help="ids as `list` shows them")
        parser.add_argument("--all", action="store_true", help=f"the oldest {MOST:,}; again for the rest")


def run_list(arguments: argparse.Namespace) -> int:
    async def work(connection: "AsyncConnection") -> list[dict[str, Any]]:
        found = [
            (kind, row) for kind in KINDS for row in await _outbox(kind).dead(connection, arguments.limit)
        ]
        return [_row(kind, row) for kind, row in found]

    if arguments.limit < 1:
        raise CommandError("--limit must be at least 1")
    rows = in_transaction(arguments, work)
    if arguments.json:
        print_json(rows)
        return 0
    from rich.table import Table

    columns = ("kind", "id", "tenant", "to", "died_at", "code", "reason")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    value_console().print(table if rows else "nothing was refused")
    return 0


def run_redrive(arguments: argparse.Namespace) -> int:
    return _act(arguments, _outbox(arguments.kind).replay, "outbox.redrive", "redriven")


def run_drop(arguments: argparse.Namespace) -> int:
    return _act(arguments, _outbox(arguments.kind).drop, "outbox.drop", "dropped")


def _act(arguments: argparse.Namespace, act: Callable[..., Awaitable[int]], action: str, done: str) -> int:
    if bool(arguments.ids) == arguments.all:
        raise CommandError("name ids (see `headrace outbox list`), or say --all")

    async def work(connection: "AsyncConnection") -> Counter[tuple[str, str]]:
        wanted = set(arguments.ids)
        dead = await _outbox(arguments.kind).dead(connection, MOST)
        chosen = [row for row in dead if row.id in wanted or arguments.all]
        await act(connection, [row.id for row in chosen])
        found = Counter((row.tenant_id, _to(arguments.kind, row)) for row in chosen)
        for (tenant, to), count in found.items():
            await _record(connection, action, tenant, arguments.kind, to, count)
        return found

    found = in_transaction(arguments, work)
    count = found.total()
    if arguments.json:
        print_json({done: count})
    else:
        print(f"{count} {done}")
        for (tenant, to), of in sorted(found.items()):
            print(f"  {of} of {tenant or 'nobody'} to {to}")
    if missing := len(set(arguments.ids)) - count if arguments.ids else 0:
        raise CommandError(
            f"{missing} of the ids are none of the oldest {MOST:,} {arguments.kind} that were refused"
        )
    return 0


async def _record(
    connection: "AsyncConnection", action: str, tenant: str, kind: str, to: str, count: int
) -> None:
    from core import audit

    await audit.record(
        connection, action=action, actor="operator", tenant_id=audit.tenant_of(tenant), target=f"outbox.{kind}",
        outcome="success", detail={"to": to, "count": str(count)},
    )  # fmt: skip


def _outbox(kind: str) -> Any:
    """The module that keeps this kind."""
    from core.messaging import outbox, queue_outbox

    return {"records": outbox, "messages": queue_outbox}[kind]


def _to(kind: str, refused: Any) -> str:
    """The topic, or the family of queues."""
    return str(refused.topic if kind == "records" else refused.family)


def _row(kind: str, refused: Any) -> dict[str, Any]:
    from core.clock import rfc3339

    to = _to(kind, refused)
    if kind == "messages":
        to = f"{to} {refused.routing_key}"
    return {
        "kind": kind,
        "id": refused.id,
        "tenant": refused.tenant_id,
        "to": to,
        "enqueued_at": rfc3339(refused.enqueued_at),
        "died_at": rfc3339(refused.died_at),
        "code": refused.code,
        "reason": refused.reason,
    }
