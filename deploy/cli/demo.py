"""`headrace demo`: a request trace becomes an invoice, beside an oracle that shares no code with it."""

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.cli.frame import CommandError, Subparsers, command, data_folder, note, port_base
from deploy.installation import load
from deploy.supervisor.run_folder import RunFolder


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "demo",
        "Send a request trace, watch every record get its fate, and compare the invoice with an oracle",
        run,
        examples=(
            "headrace demo",
            "headrace demo --documents ~/papers                 # every file ends indexed, needs_ocr or failed",
            "headrace demo --trace trace.csv --json out.json    # TIMESTAMP, ContextTokens, GeneratedTokens",
            "headrace demo --profile stack",
        ),
        json_output=False,
        profile=True,
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE.csv", help="a trace of your own instead of the sample"
    )
    parser.add_argument(
        "--documents",
        type=Path,
        metavar="DIR",
        help="index the files of this folder too and show what became of each",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--port-base", type=port_base, metavar="N", help="for a platform that the demo starts itself"
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.demo import answers, report, sample
    from deploy.demo.run import DemoError, Settings
    from deploy.imports.mapping import ImportFileError
    from deploy.session import operator, settings_of

    if arguments.trace is not None and not arguments.trace.is_file():
        raise CommandError(f"there is no file {arguments.trace}")
    if arguments.documents is not None and not arguments.documents.is_dir():
        raise CommandError(f"there is no folder {arguments.documents}")
    folder = data_folder(arguments)
    with running(arguments, folder):
        installation = load(folder)
        trace = arguments.trace or sample.write(folder / "demo" / "sample.csv")
        settings = Settings(
            gateway_url=installation.environment["HEADRACE_GATEWAY_URL"],
            eventlog=settings_of(installation, EventLogSettings),
            database=settings_of(installation, DatabaseSettings),
            checkpoints=folder / "imports",
        )
        stores = report.Stores(
            settings_of(installation, ObjectSettings), settings.database, folder / "snapshots"
        )
        try:
            owner, console = operator(installation), Console()
            figures = asyncio.run(report.demo(console, settings, stores, owner, trace, slug_of(trace)))
            ws_url = installation.environment["HEADRACE_WS_URL"]
            figures |= asyncio.run(
                answers.answer_questions(console, owner, settings.gateway_url, ws_url, arguments.documents)
            )
        except (DemoError, ApiError, PlatformUnreachableError, ImportFileError) as error:
            raise CommandError(f"the demo failed: {error}") from error
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def slug_of(trace: Path) -> str:
    """One tenant a trace: `azure_2023_code.csv` goes to `demo-azure-2023-code`."""
    name = re.sub(r"[^a-z0-9]+", "-", trace.stem.lower()).strip("-")[:50].strip("-")
    return f"demo-{name or 'trace'}"


@contextlib.contextmanager
def running(arguments: argparse.Namespace, folder: Path) -> Iterator[None]:
    """The platform in `folder`: as it runs, or started for the time of the demo."""
    if RunFolder(folder).locked():
        yield
        return
    note("nothing runs there; the demo starts the platform and stops it afterwards")
    headrace = [sys.executable, "-m", "deploy.cli.main"]
    up = [*headrace, "up", "--detach", "--data", str(folder)]
    up += ["--profile", arguments.profile] if arguments.profile else []
    up += ["--port-base", str(arguments.port_base)] if arguments.port_base is not None else []
    if subprocess.run(up, check=False).returncode != 0:
        raise CommandError("the platform did not start")
    try:
        yield
    finally:
        subprocess.run([*headrace, "down", "--data", str(folder)], check=False)
