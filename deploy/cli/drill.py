"""`headrace drill`: what survives when components die under load."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.cli.frame import CommandError, Subparsers, command_group, note, port_base


def register(subparsers: Subparsers) -> None:
    group = command_group(
        subparsers,
        "drill",
        "Prove what survives failures",
        examples=(
            "headrace drill usage",
            "headrace drill conservation --records 1000000",
            "headrace drill usage-kill",
            "headrace drill runs --profile stack --json runs.json",
        ),
    )
    what = "SIGKILL components during an import and compare every content hash with an undisturbed run"
    parser = _parser(group, "usage-kill", what, usage_kill)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="20 where left out")
    parser.add_argument(
        "--requests", type=int, default=20_000, metavar="N", help="to import, 20,000 where left out"
    )
    what = "SIGKILL workers at every named point of the usage path and at random, two at a time, and compare content hashes"
    parser = _parser(group, "usage", what, usage)
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="at random moments (default 100)")
    what = "Land generated records with repetitions, conflicts, late and unreadable ones, and hold every fate and cell against a plain reading of them"
    parser = _parser(group, "conservation", what, conservation)
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N", help="default 1,000,000")
    what = "Kill one and drain the other of two agents, WebSocket gateways and gateways under conversations"
    parser = _parser(group, "runs", what, conversations)
    parser.add_argument(
        "--runs", type=int, default=200, metavar="N", help="runs of agents, 200 where left out"
    )
    parser.add_argument(
        "--watchers", type=int, default=2, metavar="N", help="clients that follow each run, 2 where left out"
    )


def _parser(
    group: Any, name: str, what: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=what,
        description=what + ". Starts platforms of its own, one after the other, and ends only those.",
        epilog=f"examples:\n  headrace drill {name}\n  headrace drill {name} --profile stack --json drill.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", choices=("embedded", "stack"), default="embedded")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides what is left to chance")
    parser.add_argument("--port-base", type=port_base, default=20_000, metavar="N")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the platforms' folders here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.set_defaults(run=run)
    return parser


def usage_kill(arguments: argparse.Namespace) -> int:
    from deploy.drill.usage_kill import drill

    def show(report: dict[str, Any]) -> str:
        for name in ("facts", "cells", "snapshot", "invoice"):
            calm, storm = report["calm"][name], report["storm"][name]
            print(f"{name:9} {calm[:16]}  {storm[:16]}  {'equal' if calm == storm else 'DIFFERENT'}")
        print(
            f"invoice   {report['calm']['unrounded']}  {report['storm']['unrounded']}  oracle {report['expected']}"
        )
        print(f"kills     {len(report['kills'])}, repeated records {report['storm']['duplicates']}")
        return "" if report["equal"] else "contents differ"

    return _carry_out(
        arguments,
        lambda folder: drill(
            folder,
            arguments.profile,
            arguments.port_base,
            arguments.kills,
            arguments.requests,
            arguments.seed,
            note,
        ),
        show,
    )


def usage(arguments: argparse.Namespace) -> int:
    from deploy.drill.usage import drill

    def show(report: dict[str, Any]) -> str:
        for name in ("facts", "cells", "fates", "snapshot", "invoices"):
            calm, storm = report["calm"][name], report["storm"][name]
            print(f"{name:9} {calm[:16]}  {storm[:16]}  {'equal' if calm == storm else 'DIFFERENT'}")
        print(f"points    {len(report['points'])}, each reached and killed at; then two runners at once")
        print(f"kills     {report['random_kills']} at random moments, {report['records']} records")
        print(f"billing   {report['billing_kills']} killed; documents: {report['invoices']}")
        print(f"purges    {report['purges']['intended']} intended, {report['purges']['done']} done")
        print(f"files     {report['files_put_together']} put together")
        return "" if report["equal"] else "contents differ"

    return _carry_out(
        arguments,
        lambda folder: drill(
            folder, arguments.profile, arguments.port_base, arguments.kills, arguments.seed, note
        ),
        show,
    )


def conservation(arguments: argparse.Namespace) -> int:
    from deploy.drill.conservation import drill

    def show(report: dict[str, Any]) -> str:
        print(
            f"records   {report['records']} of {report['tenants']} tenants in {report['partitions']} partitions"
        )
        print(f"fates     {report['fates']}, {report['late']} of the counted days late")
        print(
            f"cells     {report['hourly_cells']} hourly and {report['daily_cells']} daily, equal to the last digit"
        )
        print(f"listed    {report['listed']} records that were not counted, each at its offset")
        print(f"time      {report['seconds']:.0f} s for {report['slices']} slices, published and purged")
        return ""

    return _carry_out(
        arguments,
        lambda folder: drill(
            folder, arguments.profile, arguments.port_base, arguments.records, arguments.seed, note
        ),
        show,
    )


def conversations(arguments: argparse.Namespace) -> int:
    from deploy.drill.runs import drill

    def show(report: dict[str, Any]) -> str:
        print(f"runs      {report['runs']}, each with one terminal event: {report['outcomes']}")
        print(f"takeovers {report['takeovers']} in {report['seconds']:.0f} s")
        print(f"clients   {report['cuts']} connections cut, {report['repeated_requests']} requests repeated")
        print(f"texts     {report['texts']}, each with the SHA-256 of its event; no message doubled")
        return ""

    return _carry_out(
        arguments,
        lambda folder: drill(
            folder,
            arguments.profile,
            arguments.port_base,
            arguments.runs,
            arguments.watchers,
            arguments.seed,
            note,
        ),
        show,
    )


def _carry_out(
    arguments: argparse.Namespace,
    drill: Callable[[Path], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
) -> int:
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.drill.platform import DrillError

    folder = arguments.data or Path(tempfile.mkdtemp(prefix="headrace-drill-"))
    try:
        report = drill(folder)
    except (DrillError, ApiError, PlatformUnreachableError) as error:
        raise CommandError(f"the drill failed: {error}; its folders stay in {folder}") from error
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if problem := show(report):
        raise CommandError(f"{problem}; the platforms' folders stay in {folder}")
    if arguments.data is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0
