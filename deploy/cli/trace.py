"""`headrace trace`: an invoice line to its events, an event to its lines or the one reason why it is in none."""

import argparse
import re
from collections.abc import Mapping
from typing import Any, Final

from deploy.cli.frame import CommandError, Subparsers, ask, command, print_json, value_console

LINE: Final = re.compile(r"(draft|INV-\d{6,18}|inv_[0-9a-f-]{36}):(\d{1,7})", re.ASCII)
RECORD: Final = re.compile(r"(\d{1,7})@(\d{1,15})", re.ASCII)
PAGE: Final = 1_000


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "trace",
        "From an invoice line to its events with their coordinates, or from an event to what became of it",
        run,
        examples=(
            "headrace trace INV-000001:1 --tenant acme",
            "headrace trace draft:2 --tenant acme --limit 1000 --json | jq -r '.data[].id'",
            "headrace trace evt-17 --source crm/eu-1 --tenant acme",
            "headrace trace 2@1500 --tenant acme",
        ),
    )
    parser.add_argument(
        "what",
        metavar="EVENT|LINE",
        help="a line as NUMBER:LINE or draft:LINE, an event by its id (with --source), or a record as PARTITION@OFFSET",
    )
    parser.add_argument("--tenant", required=True, help="slug of the organisation")
    parser.add_argument("--source", help="of the event: what its sender wrote in `source`")
    parser.add_argument("--limit", type=int, default=20, help="events of a line to show (default 20)")


def run(arguments: argparse.Namespace) -> int:
    found = _line(arguments) if arguments.source is None else None
    if found is not None:
        _show(arguments, found, _print_line)
        return 0 if found["proof"]["verified"] else 3
    _show(arguments, ask(arguments, "GET", "/api/v1/usage/trace", _named(arguments)), _print_event)
    return 0


def _line(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A line with as many events as were asked for; None where no line is named."""
    match = LINE.fullmatch(arguments.what)
    if match is None:
        return None
    path, found, after = f"/api/v1/billing/invoices/{match[1]}/lines/{match[2]}/events", dict[str, Any](), ""
    while not found or (found["has_more"] and len(found["data"]) < arguments.limit):
        wanted = min(PAGE, max(1, arguments.limit - len(found.get("data", ()))))
        page = ask(arguments, "GET", path, {"limit": str(wanted), **({"after": after} if after else {})})
        if found:
            page = {**page, "proof": found["proof"], "data": [*found["data"], *page["data"]]}
        found, after = page, page["last_id"] or ""
    return found


def _named(arguments: argparse.Namespace) -> dict[str, str]:
    """Raises: CommandError."""
    if arguments.source is not None:
        return {"source": arguments.source, "id": arguments.what}
    record = RECORD.fullmatch(arguments.what)
    if record is None:
        raise CommandError(
            f"{arguments.what} names no line (INV-000001:1, draft:1) and no record (PARTITION@OFFSET); for an event "
            "give its --source too"
        )
    return {"partition": record[1], "offset": record[2]}


def _show(arguments: argparse.Namespace, found: Mapping[str, Any], show: Any) -> None:
    if arguments.json:
        print_json(found)
        return

    show(value_console(), found)


def _print_line(console: Any, found: Mapping[str, Any]) -> None:
    line, proof = found["line"], found["proof"]
    named = " ".join(f"{name}={value}" for name, value in line["dimensions"].items())
    console.print(f"{line['number'] or 'draft'} line {line['line']}: {line['meter']} {named}".rstrip())
    again = proof["recomputed"]
    console.print(
        f"charged {proof['charged']['amount']} {line['currency'] or ''} for {proof['charged']['quantity']}; computed again "
        f"from {proof['events']} events: {again['amount'] if again else 'nothing'}: "
        + ("verified" if proof["verified"] else f"NOT VERIFIED ({proof['reason']})"),
        soft_wrap=True,
    )
    from rich.table import Table

    table = Table(
        "id", "source", "time", "quantity", "partition", "offset", "slice", "object", box=None, pad_edge=False
    )
    for one in found["data"]:
        at = one["coordinates"]
        table.add_row(
            one["id"], one["source"], one["time"], one["quantity"], str(at["partition"]), str(at["offset"]),
            str(at["slice"]), at["object"],
        )  # fmt: skip
    console.print(table)
    if found["has_more"]:
        console.print("there are more; raise --limit")


def _print_event(console: Any, found: Mapping[str, Any]) -> None:
    code = f" ({found['code']})" if found["code"] else ""
    console.print(f"{found['state']}{code}: {found['detail']}", soft_wrap=True)
    for word in ("event", "other"):
        one = found[word]
        if one is not None:
            at = one["coordinates"]
            console.print(
                f"{word}: {one['source']} {one['id']} {one['meter'] or ''} {one['quantity'] or ''} {one['time'] or ''}, "
                f"partition {at['partition']} offset {at['offset']}, slice {at['slice']}, {at['object']}",
                soft_wrap=True,
            )
    for line in found["lines"]:
        where = f"{line['number'] or 'draft'}:{line['line']}"
        console.print(f"{line['effect']}: {where} {line['meter']} {line['amount'] or ''}", soft_wrap=True)
