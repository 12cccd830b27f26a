"""`headrace replay`: usage made anew from its records, compared, and let count."""

import argparse
from typing import TYPE_CHECKING, Any

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    installation_of,
    note,
    print_json,
)

if TYPE_CHECKING:
    from assets.usage.difference import Difference
    from assets.usage.promotion import Generation

SHOWN = 15


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "replay",
        "Make facts, fates and sums of usage anew from the lake, compare them, and let them count",
        examples=(
            "headrace replay run",
            "headrace replay run --first 120 --last 340",
            "headrace replay show 2 --json",
            "headrace replay promote 2",
            "headrace replay discard 2",
        ),
    )
    run = command(
        group, "run", "Build a new generation beside the one in use and report what it would change; nothing counts yet",
        run_run, examples=("headrace replay run", "headrace replay run --first 120 --last 340 --price-revision 17"),
    )  # fmt: skip
    run.add_argument(
        "--first", type=int, default=1, metavar="SLICE", help="read again from this slice on (default 1)"
    )
    run.add_argument(
        "--last", type=int, metavar="SLICE", help="read again up to this slice (default: to the end)"
    )
    run.add_argument(
        "--price-revision", type=int, metavar="N", help="charge the report by the book up to this revision"
    )
    run.add_argument("--generation", type=int, metavar="N", help="go on with one that was begun")
    command(group, "list", "Generations, newest first", run_list, examples=("headrace replay list",))
    for name, what, act in (
        ("show", "The report of a generation", run_show),
        ("promote", "Let a generation count from now on; issued invoices stay as they are", run_promote),
        ("discard", "Give a generation up and delete its tables", run_discard),
    ):
        parser = command(group, name, what, act, examples=(f"headrace replay {name} 2",))
        parser.add_argument("generation", type=int)


def run_run(arguments: argparse.Namespace) -> int:
    from assets.usage.promotion import ReplayError, begin, build

    objects, database, state = _seams(arguments)
    try:
        generation = arguments.generation or begin(
            database, first=arguments.first, last=arguments.last, price_revision=arguments.price_revision,
            by=_owner(database),
        )  # fmt: skip
        found = build(objects, database, state, generation)
    except (ReplayError, LookupError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json({"generation": generation, **found.report()})
    else:
        _show(generation, found)
    note(
        f"nothing counts yet: `headrace replay promote {generation}` or `headrace replay discard {generation}`"
    )
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    from assets.usage.promotion import generations

    found = generations(_seams(arguments)[1])
    if arguments.json:
        print_json([_row(each) for each in found])
        return 0
    for each in found:
        until = "the end" if each.last_slice is None else str(each.last_slice)
        print(
            f"{each.generation:3}  {_state(each):9}  from {each.made_from}, slices {each.first_slice} to {until} read again, "
            f"code {each.code_version}, through slice {each.through_slice}"
        )
    if not found:
        print("only the first generation: nothing was ever replayed")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    from assets.usage.promotion import ReplayError, find

    try:
        found = find(_seams(arguments)[1], arguments.generation)
    except ReplayError as error:
        raise CommandError(str(error)) from error
    print_json({**_row(found), "report": found.report})
    return 0


def run_promote(arguments: argparse.Namespace) -> int:
    from assets.usage.promotion import ReplayError, promote
    from quality.gates import problems

    objects, database, state = _seams(arguments)
    try:
        last = promote(objects, database, state, arguments.generation, problems, by=_owner(database))
    except ReplayError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json({"generation": arguments.generation, "slice": last})
    else:
        print(
            f"generation {arguments.generation} counts since slice {last}; what was invoiced differs as adjustments"
        )
    return 0


def run_discard(arguments: argparse.Namespace) -> int:
    from assets.usage.promotion import ReplayError, discard

    objects, database, state = _seams(arguments)
    try:
        discard(objects, database, state, arguments.generation, by=_owner(database))
    except ReplayError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json({"discarded": arguments.generation})
    else:
        print(f"generation {arguments.generation} is gone")
    return 0


def _show(generation: int, found: "Difference") -> None:
    print(f"generation {generation} compared up to slice {found.through}")
    print(f"events    {int(found.events['records'].sum())} differ")
    for row in found.events.head(SHOWN).iter_rows(named=True):
        before, after = (
            "/".join(filter(None, (row[f"{new}fate"], row[f"{new}code"]))) for new in ("", "new_")
        )
        print(f"          {row['records']:>10} of {row['tenant']}: {before} → {after}")
    print(f"cells     {len(found.cells)} differ")
    for row in found.cells.head(SHOWN).iter_rows(named=True):
        print(
            f"          {row['hour']} {row['tenant']} {row['meter']}: {row['quantity']} → {row['new_quantity']}"
        )
    print(f"charges   {len(found.charges)} differ, unrounded and before what was invoiced")
    for each in found.charges[:SHOWN]:
        print(f"          {each['tenant']} {each['meter'] or ''}: {each['amount']} → {each['new_amount']}")


def _state(found: "Generation") -> str:
    if found.promoted:
        return "promoted"
    if found.discarded:
        return "discarded"
    return "built" if found.through_slice else "begun"


def _row(found: "Generation") -> dict[str, Any]:
    return {
        "generation": found.generation,
        "state": _state(found),
        "made_from": found.made_from,
        "first_slice": found.first_slice,
        "last_slice": found.last_slice,
        "code_version": found.code_version,
        "price_revision": found.price_revision,
        "through_slice": found.through_slice,
    }


def _seams(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    from core.settings import DatabaseSettings, DataSettings, ObjectSettings
    from deploy.session import settings_of

    installation = installation_of(arguments)
    objects, database = settings_of(installation, ObjectSettings), settings_of(installation, DatabaseSettings)
    return objects, database, settings_of(installation, DataSettings).state_dir


def _owner(database: Any) -> str:
    from deploy.session import owner_id

    found = owner_id(database)
    if found is None:
        raise CommandError(
            "there is no account of the platform's owner yet; start it once with `headrace up`"
        )
    return found
