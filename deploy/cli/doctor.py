"""`headrace doctor`: what is wrong and how to mend it."""

import argparse
from dataclasses import asdict

from deploy.cli.frame import Subparsers, command, installation_of, print_json


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "doctor",
        "Check machine, installation and flow of events; exit status 1 if anything is broken",
        run,
        examples=("headrace doctor", "headrace doctor --all", "headrace doctor --json"),
        profile=True,
    )
    parser.add_argument("--all", action="store_true", help="also show what is in order")


def run(arguments: argparse.Namespace) -> int:
    from deploy.doctor import Level, examine

    findings = list(examine(installation_of(arguments)))
    failed = any(finding.level is Level.FAIL for finding in findings)
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
        return int(failed)
    for finding in findings:
        if finding.level is not Level.OK or arguments.all:
            print(f"{finding.level:4}  {finding.check}: {finding.detail}")
            if finding.mend:
                print(f"      → {finding.mend}")
    broken = sum(finding.level is not Level.OK for finding in findings)
    print(
        f"{len(findings)} checks, {broken} to look at" if broken else f"{len(findings)} checks, all in order"
    )
    return int(failed)
