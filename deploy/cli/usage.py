"""`headrace usage import`: anybody's CSV or JSON lines become usage events of a tenant; `usage producers`: who lacks what."""

import argparse
import json
from pathlib import Path

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    no_tenant,
    note,
    print_json,
    running_installation,
)
from deploy.imports.mapping import Mapped
from deploy.imports.times import UNITS, Relative, parse_time

EXAMPLES = (
    "headrace usage import requests.csv --tenant acme --source crm --time-column at --meter llm.tokens.input=prompt",
    "headrace usage import trace.csv --tenant acme --source gpu-1 --time-column TIMESTAMP \\",
    "    --meter llm.tokens.input=ContextTokens --meter llm.tokens.output=GeneratedTokens --json report.json",
    "headrace usage import trace.jsonl --tenant acme --source gpu-2 --time-column timestamp --time-unit ms \\",
    "    --time-origin 2026-01-01T00:00:00Z --meter llm.tokens.input=input_length",
    "headrace usage import rates.csv --tenant acme --source gpu-3 --columns at,rate,,model --time-column at \\",
    "    --time-unit s --time-origin 1970-01-01T00:00:00Z --meter api.requests=rate --round-quantities",
)
SHOWN = 20


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers, "usage", "Import usage; see which events of a producer are missing", examples=EXAMPLES[:1]
    )
    parser = command(
        group,
        "import",
        "Import a file as usage of a tenant; running it twice changes nothing",
        run,
        examples=EXAMPLES,
        json_output=False,
    )
    parser.add_argument("file", type=Path, help="in UTF-8: JSON lines (.jsonl, .ndjson), else CSV")
    parser.add_argument("--tenant", required=True, help="slug of the organisation; made where it is missing")
    parser.add_argument(
        "--source",
        required=True,
        help="where the usage comes from; part of every event's identity: equal rows of two files are one "
        "unless their sources differ",
    )
    parser.add_argument(
        "--columns",
        metavar="A,B,C",
        help="names for the columns of a CSV file without a header; leave empty what is not needed",
    )
    parser.add_argument(
        "--time-column",
        required=True,
        metavar="COLUMN",
        help="dates with a time of day; without a zone they are UTC",
    )
    parser.add_argument(
        "--time-unit",
        choices=tuple(UNITS),
        help="the times are numbers that count this from --time-origin on",
    )
    parser.add_argument(
        "--time-origin",
        metavar="TIME",
        help="when their 0 was, such as 2026-01-01T00:00:00Z; 1970-01-01T00:00:00Z for Unix times",
    )
    parser.add_argument(
        "--meter",
        required=True,
        action="append",
        metavar="NAME=COLUMN",
        help="a meter and the column of its quantity",
    )
    parser.add_argument(
        "--round-quantities",
        action="store_true",
        help="round to nine digits behind the point, half to even; else rows with more are bad",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report here")

    listing = command(
        group,
        "producers",
        "Show producers that number their events, and which numbers are missing or doubled",
        run_producers,
        examples=("headrace usage producers", "headrace usage producers --tenant acme --incomplete --json"),
    )
    listing.add_argument("--tenant", help="slug of the organisation")
    listing.add_argument("--incomplete", action="store_true", help="only those with something open")
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="at most N, up to 100 (default 50)"
    )


def run_producers(arguments: argparse.Namespace) -> int:
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    if not 1 <= arguments.limit <= 100:
        raise CommandError("--limit must be from 1 to 100")
    owner = operator(running_installation(arguments))
    wanted = {"incomplete": str(arguments.incomplete).lower(), "limit": str(arguments.limit)}
    try:
        if arguments.tenant is not None:
            if owner.find_tenant(arguments.tenant) is None:
                raise CommandError(no_tenant(arguments.tenant))
            wanted["tenant"] = arguments.tenant
        found = owner.client().get("/api/v1/usage/producers", **wanted)["data"]
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json(found)
        return 0
    if not found:
        print("no producer numbers its events" if not arguments.incomplete else "nothing is missing")
    for one in found:
        life = f" {one['incarnation']}" if one["incarnation"] else ""
        print(f"{one['tenant']} {one['producer']}{life}: {one['state']}, up to {one['last_sequence']}")
        for each in one["data"]:
            said = [f"{name} {_numbers(each[name])}" for name in ("missing", "doubled") if each[name]] or [
                "other events than were reported"
            ]
            print(f"  {each['first']} to {each['last']}, named {each['named_at']}: {'; '.join(said)}")
    return 0


def _numbers(ranges: list[list[int]]) -> str:
    """The first ranges as people write them."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN]]
    return ", ".join(texts) + (f" and {len(ranges) - SHOWN} more ranges" if len(ranges) > SHOWN else "")


def run(arguments: argparse.Namespace) -> int:
    from rich.progress import Progress

    from deploy.client import ApiError, Client, PlatformUnreachableError
    from deploy.imports.mapping import ImportFileError
    from deploy.imports.runner import examine, run_import
    from deploy.session import operator

    installation = running_installation(arguments)
    mapped = mapped_of(arguments)
    owner = operator(installation)
    try:
        found = examine(arguments.file, mapped)  # a file that cannot be imported makes no tenant
        tenant_id = owner.ensure_tenant(arguments.tenant)
        with Client(owner.gateway_url, owner.tenant_key(arguments.tenant)) as client, Progress() as bar:
            task = bar.add_task("importing", total=None)
            report = run_import(
                client,
                arguments.file,
                mapped,
                tenant_id=tenant_id,
                tenant_name=arguments.tenant,
                found=found,
                checkpoints=installation.folder / "imports",
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except (ApiError, PlatformUnreachableError, ImportFileError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    for bad in report.bad_rows[:SHOWN]:
        note(f"line {bad['line']}: {bad['reason']}")
    if len(report.bad_rows) > SHOWN:
        note(f"… and {len(report.bad_rows) - SHOWN} more; --json OUT lists them all")
    for verdict in report.refused[:SHOWN]:
        note(f"refused {verdict['id']}: {verdict['message']} ({verdict['code']})")
    note(
        f"{report.accepted:,} of {report.events:,} events accepted from {report.rows:,} rows of {arguments.file}; "
        f"{len(report.bad_rows)} bad rows left out, {len(report.refused)} events refused"
        + (f"; {report.rounded:,} quantities rounded" if report.rounded else "")
    )
    return 0


def mapped_of(arguments: argparse.Namespace) -> Mapped:
    """What the options say of the file. Raises: CommandError."""
    columns = tuple(arguments.columns.split(",")) if arguments.columns is not None else ()
    named = [name for name in columns if name]
    if arguments.columns is not None and (not named or len(set(named)) < len(named)):
        raise CommandError("--columns must name each column once, for example --columns at,rate,,model")
    return Mapped(
        arguments.source,
        arguments.time_column,
        meters_of(arguments.meter),
        columns=columns,
        relative=relative_of(arguments.time_unit, arguments.time_origin),
        round_quantities=arguments.round_quantities,
    )


def relative_of(unit: str | None, origin: str | None) -> Relative | None:
    """An origin is never guessed. Raises: CommandError."""
    if unit is None and origin is None:
        return None
    if unit is None or origin is None:
        raise CommandError(
            "--time-unit and --time-origin go together: what the numbers count, and when their 0 was "
            "(1970-01-01T00:00:00Z for Unix times)"
        )
    try:
        return Relative(unit, parse_time(origin))
    except ValueError as error:
        raise CommandError(f"--time-origin {error}") from None


def meters_of(pairs: list[str]) -> dict[str, str]:
    """`NAME=COLUMN` pairs. Raises: CommandError."""
    result: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise CommandError(f"--meter {pair!r} must be NAME=COLUMN, for example llm.tokens.input=prompt")
        if name in result:
            raise CommandError(f"--meter {name} is given twice; add the columns up before the import")
        result[name] = column
    return result
