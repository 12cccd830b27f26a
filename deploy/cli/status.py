"""`headrace status`: what runs, since when, how much memory it takes."""

import argparse

from deploy.cli.frame import Subparsers, command, data_folder, print_json
from deploy.installation import load
from deploy.supervisor.processes import alive, memory_mb
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.status import rows_of


def register(subparsers: Subparsers) -> None:
    command(
        subparsers,
        "status",
        "Show every component: state, address, pid, memory (PSS of its process group)",
        run,
        examples=(
            "headrace status",
            "headrace status --json | jq -r '.[] | select(.state != \"ready\").name'",
        ),
        profile=True,
    )


def run(arguments: argparse.Namespace) -> int:
    folder = data_folder(arguments)
    if not (arguments.json and folder.is_dir()):
        load(folder)  # says how to start one where there is none
    state = RunFolder(folder).state()
    rows = rows_of(folder)
    if arguments.json:
        print_json(rows)
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "state", "address", "pid", "memory", "since", "restarts", "reason"):
        table.add_column(
            title,
            justify="right" if title in {"pid", "memory", "restarts"} else "left",
            no_wrap=title != "reason",
        )
    for row in rows:
        colour = {"ready": "green", "stopped": "dim"}.get(row["state"], "red")
        table.add_row(
            row["name"], f"[{colour}]{row['state']}[/]", row["address"], str(row["pid"] or ""),
            f"{row['rss_mb']:.0f} MB", (row["since"] or "")[:19].replace("T", " "), str(row["restarts"]), escape(row["reason"]),
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    launcher = RunFolder(folder).launcher()
    own = 0.0 if launcher is None or not alive(launcher) else memory_mb([launcher])
    total = sum(row["rss_mb"] for row in rows)
    console.print(f"\nmemory {total + own:.0f} MB (PSS; launcher {own:.0f} MB of it) in {folder}")
    if state and state["ready_after_seconds"] is not None:
        console.print(f"ready {state['ready_after_seconds']} s after `up`, profile {state['profile']}")
    return 0
