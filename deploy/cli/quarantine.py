"""`headrace quarantine list|accept|reject`: records that landed and were not counted, and what becomes of them."""

import argparse
from collections.abc import Iterator
from typing import Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    no_tenant,
    print_json,
    running_installation,
    value_console,
)

PATH = "/api/v1/usage/quarantine"
PAGE = 100


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "quarantine",
        "Records that were not counted",
        examples=("headrace quarantine list", "headrace quarantine accept uqr_…"),
    )
    listing = command(
        group,
        "list",
        "List quarantined and rejected records with what they say, their coordinates and the reason, newest first",
        run_list,
        examples=(
            "headrace quarantine list",
            "headrace quarantine list --tenant acme --state open --code conflict --json",
        ),
    )
    listing.add_argument("--tenant", help="slug of the organisation")
    listing.add_argument("--state", choices=("open", "accepted", "rejected"), help="what was decided")
    listing.add_argument("--code", help="for example conflict, out_of_limits, unreadable")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most N records (default 50)")
    for name, what in (
        (
            "accept",
            "Let records count: the other version of a conflict, or what was out of the limits of time",
        ),
        ("reject", "Acknowledge records that stay uncounted"),
    ):
        parser = command(
            group, name, what, run_decide, examples=(f"headrace quarantine {name} uqr_…",)
        )  # fmt: skip
        parser.add_argument("ids", nargs="+", metavar="ID", help="as `list` shows it")
        parser.set_defaults(decision=name)


def run_list(arguments: argparse.Namespace) -> int:
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    if arguments.limit < 1:
        raise CommandError("--limit must be at least 1")
    owner = operator(running_installation(arguments))
    filters = {name: getattr(arguments, name) for name in ("tenant", "state", "code")}
    wanted = {name: value for name, value in filters.items() if value is not None}
    try:
        if arguments.tenant is not None and owner.find_tenant(arguments.tenant) is None:
            raise CommandError(no_tenant(arguments.tenant))
        found = list(_records(owner.client(), wanted, arguments.limit))
        # People know organisations by their slugs; records may also name one that does not exist.
        slugs = {name: owner.slug_of(name) for name in {one["tenant"] for one in found}}
        found = [one | {"tenant": slugs[one["tenant"]]} for one in found]
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json(found)
        return 0
    _show(found)
    return 0


def run_decide(arguments: argparse.Namespace) -> int:
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    owner = operator(running_installation(arguments))
    decided = []
    try:
        for record in arguments.ids:
            decided.append(owner.client().post(f"{PATH}/{record}/{arguments.decision}", {}))
    except (ApiError, PlatformUnreachableError) as error:
        done = f"; decided before it: {', '.join(one['id'] for one in decided)}" if decided else ""
        raise CommandError(f"{record}: {error}{done}") from error
    if arguments.json:
        print_json(decided)
        return 0
    for one in decided:
        sent = f", sent as {one['sent']['event']}" if one["sent"] else ""
        print(f"{one['id']} {one['state']}{sent}")
    return 0


def _records(client: Any, wanted: dict[str, str], limit: int) -> Iterator[dict[str, Any]]:
    """Page by page, newest first."""
    after: dict[str, str] = {}
    while limit > 0:
        page = client.get(PATH, **wanted, **after, limit=str(min(limit, PAGE)))
        yield from page["data"]
        limit -= len(page["data"])
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}


def _show(found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    console = value_console()
    if not found:
        console.print("nothing is quarantined")
        return
    table = Table(
        "id",
        "state",
        "code",
        "tenant",
        "received",
        "event",
        "says",
        "counted",
        "at",
        box=None,
        pad_edge=False,
    )
    for one in found:
        at = one["coordinates"]
        table.add_row(
            one["id"], one["state"], one["code"], one["tenant"], one["received"],
            f"{one['source']} {one['event_id']}" if one["event_id"] else f"{one['bytes']} bytes",
            _said(one["version"]), _said(one["counted"]), f"{at['partition']}:{at['offset']}",
        )  # fmt: skip
    console.print(table)


def _said(version: dict[str, Any] | None) -> str:
    """What matters of a version, short."""
    if version is None:
        return ""
    data = version["data"]
    if "meter" in data:
        return f"{data['quantity']} {data['meter']} at {version['time']}"
    return " ".join(str(value) for value in data.values())
