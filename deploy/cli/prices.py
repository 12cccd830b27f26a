"""`headrace prices`: a public price list, or the price file once more, into the price book."""

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    in_transaction,
    installation_of,
    note,
    print_json,
)

if TYPE_CHECKING:
    from core.prices.lists import PriceList
    from core.prices.lists.plan import Plan

SHOWN = 20
EXAMPLES = (
    "headrace prices import model_prices_and_context_window.json --dry-run",
    "headrace prices import data.json --format genai --only anthropic --only openai/gpt-4o",
    "headrace prices import data.json --accept openai/o3 --json | jq .parked",
)


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "prices",
        "Record public price lists, or the price file, in the price book",
        examples=(EXAMPLES[0], "headrace prices record"),
    )
    parser = command(
        group,
        "import",
        "Take the prices of a public list, for everybody. What the book has already stays; a change holds from "
        "this hour; a change by more than a factor is parked, listed and not taken (exit status 3)",
        run,
        examples=EXAMPLES,
    )
    parser.add_argument("file", type=Path, help="the list, as its project publishes it")
    parser.add_argument("--format", choices=("litellm", "genai"), help="told by its shape where left out")
    parser.add_argument("--dry-run", action="store_true", help="show what would change and change nothing")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PROVIDER[/MODEL]",
        help="nothing else of the list; may be repeated",
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="PROVIDER/MODEL",
        help="take what is parked of this model",
    )
    parser.add_argument(
        "--factor", type=factor, default=Decimal(3), metavar="N", help="park larger changes (default 3)"
    )
    command(
        group,
        "record",
        "Record the price file (HEADRACE_PRICES_FILE) as it stands, also prices that were corrected or ended since, "
        "which a start of billing leaves as they are",
        run_record,
        examples=("headrace prices record",),
    )


def factor(text: str) -> Decimal:
    """Type of `--factor`. Raises: ArgumentTypeError, a usage error."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not (value.is_finite() and value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def run(arguments: argparse.Namespace) -> int:
    from core.prices import PriceError
    from core.prices.lists import read_list
    from core.prices.publish import Choice, import_list

    choice = Choice(tuple(arguments.only), tuple(arguments.accept), arguments.factor)
    try:
        found = read_list(arguments.file, arguments.format)
        made = in_transaction(
            arguments, lambda connection: import_list(connection, found, choice, dry_run=arguments.dry_run)
        )
    except PriceError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json(report(made, found, dry_run=arguments.dry_run))
    else:
        show(made, found, dry_run=arguments.dry_run)
    return 3 if made.parked else 0


def run_record(arguments: argparse.Namespace) -> int:
    from core.prices import PriceError, read_file
    from core.prices.publish import publish
    from core.settings import BillingSettings
    from deploy.session import settings_of

    try:
        declared = read_file(settings_of(installation_of(arguments), BillingSettings).prices_file)
        fresh = in_transaction(arguments, lambda connection: publish(connection, declared, back=True))
    except PriceError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json({"declared": len(declared), "recorded": [price.id for price in fresh]})
    else:
        note(f"{len(declared):,} prices are declared, {len(fresh):,} were recorded")
    return 0


def report(made: "Plan", found: "PriceList", *, dry_run: bool) -> dict[str, Any]:
    """The plan for programs; numbers are decimal text."""
    from core.clock import rfc3339
    from core.decimals import canonical
    from core.prices.lists.plan import Change

    def row(change: Change) -> dict[str, Any]:
        price, before = change.price, change.before
        return {
            "meter": price.meter,
            "dimensions": dict(price.dimensions),
            "before": None if before is None else canonical(before.unit_price),
            "unit_price": canonical(price.unit_price),
            "per": price.per,
            "currency": price.currency,
            "valid_from": rfc3339(price.valid_from),
            "valid_to": None if price.valid_to is None else rfc3339(price.valid_to),
        }

    return {
        "dry_run": dry_run,
        "entries": len(found.entries),
        "changes": [row(change) for change in made.changes],
        "parked": [row(one.change) | {"reason": one.reason} for one in made.parked],
        "unchanged": made.unchanged,
        "refused": [
            {"provider": one.provider, "model": one.model, "reason": one.reason} for one in made.refused
        ],
        "unknown": [{"provider": provider, "model": model} for provider, model in made.unknown],
        "left_out": dict(found.left_out.most_common()),
    }


def show(made: "Plan", found: "PriceList", *, dry_run: bool) -> None:
    """The same for people: the first of everything, and how many there are."""
    told = report(made, found, dry_run=dry_run)
    for change in [one for one in told["changes"] if one["before"] is not None][:SHOWN]:
        note(
            f"changed: {_name(change)}: {change['before']} → {change['unit_price']} from {change['valid_from']}"
        )
    for parked in told["parked"][:SHOWN]:
        note(
            f"parked:  {_name(parked)}: {parked['before'] or 'new'} → {parked['unit_price']}: {parked['reason']}"
        )
    for refused in told["refused"][:SHOWN]:
        note(f"refused: {refused['provider']}/{refused['model']}: {refused['reason']}")
    for unknown in told["unknown"][:SHOWN]:
        note(f"in use and not in the list: {unknown['provider']}/{unknown['model']}")
    kinds = sum(found.left_out.values())
    note(
        f"{told['entries']:,} models: {len(made.changes):,} prices {'would be' if dry_run else 'were'} recorded, "
        f"{made.unchanged:,} are as before, {len(made.parked):,} parked, {len(made.refused):,} refused, "
        f"{kinds:,} of kinds that no meter counts; --json lists them all"
    )
    if made.parked:
        note("take what is right with --accept PROVIDER/MODEL, or a wider bound with --factor")


def _name(row: dict[str, Any]) -> str:
    dimensions = dict(row["dimensions"])
    named = "/".join(dimensions.pop(name, "") for name in ("provider", "model"))
    return " ".join([row["meter"], named, *dimensions.values()])
