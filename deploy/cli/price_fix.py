"""`headrace price-fix`: corrected prices over closed service periods: shown, approved by a person, applied once."""

import argparse
from typing import Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    print_json,
    running_installation,
    value_console,
)

PATH = "/api/v1/billing/price-fixes"


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "price-fix",
        "Charge closed service periods at corrected prices",
        examples=(
            "headrace price-fix dry-run",
            "headrace price-fix approve FIX",
            "headrace price-fix apply FIX",
        ),
    )
    dry_run = command(
        group,
        "dry-run",
        "Show what the prices of now would change in closed periods; charges nothing",
        run_dry_run,
        examples=("headrace price-fix dry-run", "headrace price-fix dry-run --tenant acme --json"),
    )
    dry_run.add_argument(
        "--tenant", action="append", metavar="SLUG", help="only this organisation; may be given again"
    )
    command(group, "list", "List price fixes, newest first", run_list, examples=("headrace price-fix list",))
    for name, what, run in (
        ("show", "Show a price fix and the difference of each line", run_show),
        ("approve", "Approve a price fix, as the person you are", run_approve),
        ("reject", "Reject a price fix: it is never applied", run_reject),
        ("apply", "Post what an approved price fix listed; again posts nothing", run_apply),
    ):
        parser = command(group, name, what, run, examples=(f"headrace price-fix {name} fix_0190…",))
        parser.add_argument("fix", help="id of the price fix")
        if name == "approve":
            parser.add_argument(
                "--accept", action="append", default=[], metavar="REASON",
                help="for a parked fix: a reason that is meant; give each",
            )  # fmt: skip


def run_dry_run(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    fix = _tried(lambda: client.post(PATH, {"tenants": arguments.tenant or "all"}))
    return _show(arguments, client, fix)


def run_list(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    listed = _tried(lambda: client.listed(PATH))
    if arguments.json:
        print_json({"object": "list", "data": listed})
        return 0
    from rich.table import Table

    table = Table("id", "state", "totals", "periods", "reasons", "made", box=None, pad_edge=False)
    for one in listed:
        table.add_row(
            one["id"],
            one["state"],
            _totals(one),
            str(one["items"]),
            ", ".join(one["reasons"]),
            one["created_at"],
        )
    value_console().print(table if listed else "no price was ever fixed")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    return _show(arguments, client, _tried(lambda: client.get(f"{PATH}/{arguments.fix}")))


def run_approve(arguments: argparse.Namespace) -> int:
    return _decide(arguments, "approve", {"accept": arguments.accept})


def run_reject(arguments: argparse.Namespace) -> int:
    return _decide(arguments, "reject", {})


def run_apply(arguments: argparse.Namespace) -> int:
    return _decide(arguments, "apply", {})


def _decide(arguments: argparse.Namespace, what: str, more: dict[str, Any]) -> int:
    client = _client(arguments)

    def decided() -> Any:
        totals = client.get(f"{PATH}/{arguments.fix}")["totals"]
        return client.post(f"{PATH}/{arguments.fix}/{what}", {"totals": totals, **more})

    fix = _tried(decided)
    if arguments.json:
        print_json(fix)
    else:
        posted = f"; {fix['posted']} adjustments were posted" if "posted" in fix else ""
        print(f"{fix['id']} is {fix['state']}: {_totals(fix)} over {fix['items']} service periods{posted}")
    return 0


def _show(arguments: argparse.Namespace, client: Any, fix: dict[str, Any]) -> int:
    items = _tried(lambda: client.listed(f"{PATH}/{fix['id']}/items"))
    if arguments.json:
        print_json({**fix, "data": items})
        return 0
    from rich.table import Table

    table = Table(
        "organisation",
        "adjusts",
        "period from",
        "meter",
        "charged",
        "would be",
        "difference",
        box=None,
        pad_edge=False,
    )
    for item in items:
        for line in item["lines"]:
            sides = (f"{side['amount']}" if side else "" for side in (line["before"], line["after"]))
            table.add_row(
                item["tenant"],
                item["adjusts"],
                item["service_period"]["start"],
                line["meter"],
                *sides,
                line["amount"],
            )
    console = value_console()
    console.print(table if items else "nothing would change")
    console.print(f"{fix['id']} is {fix['state']}: {_totals(fix)}", highlight=False)
    if fix["state"] == "parked":
        console.print(
            f"parked for {', '.join(fix['reasons'])}: approve it with --accept for each, if it is meant"
        )
    return 0


def _totals(fix: dict[str, Any]) -> str:
    return ", ".join(f"{amount} {currency}" for currency, amount in fix["totals"].items()) or "no change"


def _client(arguments: argparse.Namespace) -> Any:
    from deploy.session import operator

    owner = operator(running_installation(arguments))
    return _tried(owner.client)


def _tried(call: Any) -> Any:
    from deploy.client import ApiError, PlatformUnreachableError

    try:
        return call()
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
