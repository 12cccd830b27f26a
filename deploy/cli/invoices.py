"""`headrace invoices`: what was issued, closing a service period, adjustments, and the archive."""

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    ask,
    command,
    command_group,
    installation_of,
    print_json,
    value_console,
)

PATH = "/api/v1/billing/invoices"
COLUMNS = ("number", "reason", "start", "end", "total", "currency", "issued")


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "invoices",
        "Issued invoices and adjustments",
        examples=(
            "headrace invoices list --tenant acme",
            "headrace invoices close --tenant acme --period 2026-03",
        ),
    )
    of_tenant(
        command(
            group,
            "list",
            "List issued invoices and adjustments, newest first",
            run_list,
            examples=("headrace invoices list --tenant acme",),
        )
    )
    show = of_tenant(
        command(
            group,
            "show",
            "Show one document: its lines, and how each amount came about",
            run_show,
            examples=(
                "headrace invoices show INV-000001 --tenant acme",
                "headrace invoices show INV-000001 --tenant acme --csv > invoice.csv",
            ),
        )
    )
    show.add_argument("number", help="number or id of the document")
    show.add_argument("--csv", action="store_true", help="print it as a table for spreadsheets")
    close = of_tenant(
        command(
            group,
            "close",
            "Close a service period: issue its final invoice, which never changes; again shows the same one",
            run_close,
            examples=(
                "headrace invoices close --tenant acme --period 2026-03 --dry-run",
                "headrace invoices close --tenant acme --start 2026-03-01T00:00:00Z --end 2026-03-15T00:00:00Z",
            ),
        )
    )
    named_period(close)
    adjust = of_tenant(
        command(
            group,
            "adjust",
            "Post adjustments for usage that landed after its period was closed; again posts nothing",
            run_adjust,
            examples=(
                "headrace invoices adjust --tenant acme",
                "headrace invoices adjust --tenant acme --dry-run",
            ),
        )
    )
    named_period(adjust)
    verify = command(
        group,
        "verify",
        "Compute issued documents again from the landed records, prices and code they name; exit status 3 where one differs",
        run_verify,
        examples=(
            "headrace invoices verify",
            "headrace invoices verify INV-000001 --tenant acme --json",
        ),
    )
    verify.add_argument("number", nargs="?", help="number or id of one document; all where left out")
    verify.add_argument("--tenant", help="slug of the organisation; all where left out")
    reconcile = of_tenant(
        command(
            group,
            "reconcile",
            "From the records that landed to what is charged, for a period; exit status 3 where a difference is left",
            run_reconcile,
            examples=(
                "headrace invoices reconcile --tenant acme --period 2026-03",
                "headrace invoices reconcile --tenant acme --period 2026-03 --csv > march.csv",
            ),
        )
    )
    reconcile.add_argument("--period", metavar="MONTH", required=True, help="a calendar month (UTC)")
    reconcile.add_argument("--csv", action="store_true", help="print it as a table for spreadsheets")
    command(
        group,
        "readopt",
        "After PostgreSQL was put back to an earlier time: put issued documents back from their archive",
        run_readopt,
        examples=("headrace invoices readopt",),
    )


def of_tenant(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--tenant", required=True, help="slug of the organisation")
    return parser


def named_period(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--period", metavar="MONTH", help="a calendar month (UTC), such as 2026-03")
    parser.add_argument("--start", metavar="TIME", help="instead of a month: a full hour with its zone")
    parser.add_argument("--end", metavar="TIME", help="exclusive")
    parser.add_argument("--dry-run", action="store_true", help="show what would be issued; issue nothing")


def body_of(arguments: argparse.Namespace) -> dict[str, object]:
    named = {name: getattr(arguments, name) for name in ("period", "start", "end")}
    return {name: value for name, value in named.items() if value} | {"dry_run": arguments.dry_run}


def run_list(arguments: argparse.Namespace) -> int:
    listed = ask(arguments, "LIST", PATH)
    if arguments.json:
        print_json({"object": "list", "data": listed})
        return 0
    from rich.table import Table

    table = Table(*COLUMNS, box=None, pad_edge=False)
    for one in listed:
        period = one["service_period"]
        table.add_row(
            one["number"], one["reason"], period["start"], period["end"], one["total"], one["currency"] or "",
            one["issued_at"],
        )  # fmt: skip
    value_console().print(table if listed else "nothing was issued yet")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        print(ask(arguments, "TEXT", f"{PATH}/{arguments.number}.csv"), end="")
        return 0
    _show(arguments, ask(arguments, "GET", f"{PATH}/{arguments.number}"))
    return 0


def run_close(arguments: argparse.Namespace) -> int:
    _show(arguments, ask(arguments, "POST", PATH, body=body_of(arguments)))
    return 0


def run_adjust(arguments: argparse.Namespace) -> int:
    named = body_of(arguments)
    body = named if len(named) > 1 else {"period": "all", **named}
    posted = ask(arguments, "POST", "/api/v1/billing/adjustments", body=body)
    if arguments.json:
        print_json(posted)
        return 0
    if not posted["data"]:
        print("every closed period is charged as it would be now; nothing was posted")
    for document in posted["data"]:
        _show(arguments, document)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    if arguments.number and not arguments.tenant:
        raise CommandError("a number belongs to an organisation; name it with --tenant")
    found = [
        {"tenant": tenant, **ask(arguments, "GET", f"{PATH}/{name}/verification", tenant=tenant)}
        for tenant in ([arguments.tenant] if arguments.tenant else _tenants(arguments))
        for name in ([arguments.number] if arguments.number else _numbers(arguments, tenant))
    ]
    differing = [one for one in found if not one["verified"]]
    if arguments.json:
        print_json({"documents": len(found), "verified": len(found) - len(differing), "data": found})
        return 3 if differing else 0
    for one in differing:
        print(
            f"{one['tenant']} {one['number']}: {one['reason']}; issued {one['total']}, computed again "
            f"{one['recomputed_total']}; lines that differ: {len(one['differing'])} of {one['lines']}"
        )
    print(
        f"{len(found) - len(differing)} of {len(found)} issued documents compute to what they say, to the last digit"
    )
    return 3 if differing else 0


def run_reconcile(arguments: argparse.Namespace) -> int:
    path = f"/api/v1/billing/reconciliation/{_month(arguments.period)}"
    if arguments.csv:
        sheet = ask(arguments, "TEXT", f"{path}.csv")
        print(sheet, end="")
        return 0 if "result,reconciled,,yes" in sheet else 3
    found = ask(arguments, "GET", path)
    if arguments.json:
        print_json(found)
        return 0 if found["reconciled"] else 3
    from rich.table import Table

    table, unit = Table("", "", box=None, pad_edge=False, show_header=False), found["money"]["currency"] or ""
    for name, value in found["records"].items():
        table.add_row(f"records {name}", str(value))
    for one in found["usage"]:
        shown = f"{one['counted']} counted, {one['published']} published, difference {one['difference']}"
        table.add_row(one["meter"], shown)
    for name, value in found["money"].items():
        if name != "currency":
            table.add_row(name.replace("_", " "), f"{value} {unit}")
    value_console().print(table)
    print(
        "reconciled: every difference is zero"
        if found["reconciled"]
        else "NOT reconciled: a difference is left"
    )
    return 0 if found["reconciled"] else 3


def _month(text: str) -> str:
    """Raises: CommandError."""
    from core.invoices.periods import PeriodError, month

    try:
        month(text)
    except PeriodError as error:
        raise CommandError(str(error)) from error
    return text


def _tenants(arguments: argparse.Namespace) -> list[str]:
    """Slugs of the organisations that something was issued for."""
    from core.settings import DatabaseSettings
    from deploy.session import billed, settings_of

    return billed(settings_of(installation_of(arguments), DatabaseSettings))


def _numbers(arguments: argparse.Namespace, tenant: str) -> list[str]:
    return [one["id"] for one in ask(arguments, "LIST", PATH, {"order": "asc"}, tenant=tenant)]


def run_readopt(arguments: argparse.Namespace) -> int:
    from core.invoices.document import DocumentError
    from core.objects.api import ObjectStoreError

    try:
        found = asyncio.run(_readopt(arguments))
    except (DocumentError, ObjectStoreError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json({"seen": found.seen, "adopted": list(found.adopted), "conflicts": list(found.conflicts)})
    else:
        print(f"{found.seen} documents lie in the archive; {len(found.adopted)} were put back")
        for name in found.conflicts:
            print(f"conflict: {name} was issued with another content since; a person must look")
    return 1 if found.conflicts else 0


async def _readopt(arguments: argparse.Namespace) -> Any:
    from core.database import Database
    from core.invoices.archive import Archive
    from core.objects import open_objects
    from core.settings import DatabaseSettings, ObjectSettings
    from deploy.session import settings_of

    installation = installation_of(arguments)
    settings = settings_of(installation, DatabaseSettings)
    system = Database(settings, role="system")
    try:
        async with open_objects(settings_of(installation, ObjectSettings), settings) as objects:
            return await Archive(objects, system).readopt()
    finally:
        await system.close()


def _show(arguments: argparse.Namespace, document: Mapping[str, Any]) -> None:
    if arguments.json:
        print_json(document)
        return

    from deploy.demo import show

    show.issued(value_console(), document)
