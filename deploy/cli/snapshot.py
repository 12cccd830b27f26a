"""`headrace snapshot path|query|versions`: usage as analysts read it."""

import argparse
import asyncio
from pathlib import Path

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    command_group,
    installation_of,
    print_json,
    value_console,
)
from deploy.installation import Installation


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "snapshot",
        "Usage as a DuckDB file",
        examples=("headrace snapshot path", 'headrace snapshot query "select * from meta"'),
    )
    command(
        group,
        "path",
        "Print the path of the latest snapshot, a DuckDB file that never changes",
        run_path,
        examples=("headrace snapshot path", "duckdb -readonly $(headrace snapshot path)"),
    )
    command(
        group,
        "versions",
        "List the snapshots that are kept, newest first, by the lake version they show",
        run_versions,
        examples=("headrace snapshot versions", "headrace snapshot versions --json"),
    )
    parser = command(
        group,
        "query",
        "Ask a snapshot in SQL, the latest unless a version is named",
        run_query,
        examples=(
            'headrace snapshot query "select * from meta"',
            'headrace snapshot query "select tenant_slug, sum(amount_unrounded) from charges group by 1" --json',
            'headrace snapshot query --version 17 "select * from meta"',
        ),
    )
    parser.add_argument(
        "sql", help="tables: usage_hourly, usage_daily, usage_elements, meters, charges, prices, meta"
    )
    parser.add_argument(
        "--version", type=int, metavar="N", help="a lake version of `headrace snapshot versions`"
    )


def fetched(installation: Installation, version: int | None = None) -> Path:
    """The latest snapshot, or that of a lake version. Raises: CommandError where there is none."""
    from core.settings import DatabaseSettings, ObjectSettings
    from core.snapshots import NoSnapshotError, fetch_latest, fetch_version
    from deploy.session import settings_of

    stores = settings_of(installation, ObjectSettings), settings_of(installation, DatabaseSettings)
    folder = installation.folder / "snapshots"
    try:
        if version is None:
            return asyncio.run(fetch_latest(*stores, folder))
        return asyncio.run(fetch_version(*stores, folder, version))
    except NoSnapshotError as error:
        raise CommandError(str(error)) from error


def run_path(arguments: argparse.Namespace) -> int:
    path = fetched(installation_of(arguments))
    if arguments.json:
        print_json({"path": str(path)})
    else:
        print(path)
    return 0


def run_versions(arguments: argparse.Namespace) -> int:
    from core.settings import DatabaseSettings, ObjectSettings
    from core.snapshots import kept, version_of
    from deploy.session import settings_of

    installation = installation_of(arguments)
    stores = settings_of(installation, ObjectSettings), settings_of(installation, DatabaseSettings)
    found = [
        {"lake_version": version_of(info), "name": info.key, "bytes": info.size}
        for info in asyncio.run(kept(*stores))
    ]
    if arguments.json:
        print_json(found)
        return 0
    for one in found:
        print(f"{one['lake_version']:>8}  {one['name']}  {one['bytes']} bytes")
    return 0


def run_query(arguments: argparse.Namespace) -> int:
    import duckdb

    connection = duckdb.connect(str(fetched(installation_of(arguments), arguments.version)), read_only=True)
    try:
        cursor = connection.execute(arguments.sql)
        names, rows = [item[0] for item in cursor.description or []], cursor.fetchall()
    except duckdb.Error as error:
        raise CommandError(f"the snapshot refused the query: {error}") from error
    finally:
        connection.close()
    if arguments.json:
        print_json([{name: plain(value) for name, value in zip(names, row, strict=True)} for row in rows])
        return 0
    from rich.table import Table

    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(plain(value)) for value in row))
    value_console().print(table)
    return 0


def plain(value: object) -> object:
    """Numbers without loss: a decimal is canonical text, as in the API."""
    from decimal import Decimal

    from core.decimals import canonical

    if isinstance(value, Decimal):
        return canonical(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)
