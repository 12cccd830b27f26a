"""Waits for what the platform's own runs produce, compares it with the oracle, and shows both."""

import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from core.decimals import canonical
from core.settings import DatabaseSettings, ObjectSettings
from core.snapshots import fetch_latest, read_pointer
from deploy.client import Operator
from deploy.demo import memory, oracle, run, show

QUERY = "select sum(amount_unrounded) from charges where tenant_slug = '{slug}'"


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the snapshot comes from and goes to."""

    objects: ObjectSettings
    database: DatabaseSettings
    folder: Path


async def demo(
    console: Console, settings: run.Settings, stores: Stores, operator: Operator, trace: Path, slug: str
) -> dict[str, Any]:
    """The whole demo; returns what `--json` writes.

    Raises:
        DemoError: a figure is not the oracle's, or did not come within `settings.patience`.
    """
    truth = oracle.read_trace(trace)
    console.print(f"[bold]1[/bold] {trace.name}: {truth.requests:,} requests become usage of tenant {slug}")
    with progress(console) as bar:
        task = bar.add_task("importing through the API", total=None)
        sent = await run.send_all(
            settings, operator, trace, slug, lambda done, total: bar.update(task, completed=done, total=total)
        )
    refused = ", ".join(f"{count} {code}" for code, count in sent.refused.items())
    console.print(
        f"  {sent.report.accepted:,} events accepted, {sent.resent:,} sent again; "
        f"bad events refused one by one: {refused}"
    )
    console.print("[bold]2[/bold] the sensor starts a run; every record gets its fate")
    found = await run.read(settings, sent.tenant_id)
    expected = found.known.fates
    seen = await _conserved(console, settings, operator, slug, expected)
    show.conservation(console, seen, expected)
    problems = list(oracle.differences(expected, seen))
    if expected.counted != truth.events:
        problems.append(f"counted: the trace has {truth.events}, the topic {expected.counted}")
    console.print("[bold]3[/bold] the draft invoice")
    draft = operator.client().get("/api/v1/billing/invoices/draft", tenant=slug)
    show.invoice(console, draft)
    console.print(f"  the oracle, from the trace alone: {truth.unrounded}")
    if draft["unrounded"] != truth.unrounded:
        problems.append(f"invoice: expected {truth.unrounded}, found {draft['unrounded']}")
    console.print("[bold]4[/bold] freshness, and the analyst's figure")
    seconds = run.measure_quota(settings, operator)
    console.print(f"  a fresh event of another tenant reached its live quota after {seconds:.2f} s")
    path, unrounded = await _snapshot(console, settings, stores, slug, int(draft["lake_version"]))
    show.snapshot(console, str(path), QUERY.format(slug=slug), unrounded, unrounded == draft["unrounded"])
    if unrounded != draft["unrounded"]:
        problems.append(f"snapshot: {unrounded}, the invoice says {draft['unrounded']}")
    if problems:
        raise run.DemoError("; ".join(problems))
    memory.save(settings.checkpoints, sent.tenant_id, found)
    return {
        "tenant": slug,
        "usage": seen,
        "expected": expected.as_dict(),
        "invoice": {"unrounded": draft["unrounded"], "total": draft["total"], "currency": draft["currency"]},
        "quota_visible_seconds": round(seconds, 3),
        "snapshot": {"path": str(path), "unrounded": unrounded},
    }


def progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


async def _conserved(
    console: Console, settings: run.Settings, operator: Operator, slug: str, expected: oracle.Fates
) -> dict[str, int]:
    def ask() -> dict[str, int]:
        totals = operator.client().get("/api/v1/billing/invariants", tenant=slug)["totals"]
        return {name: int(totals.get(name, 0)) for name in expected.as_dict()}

    with progress(console) as bar:
        task = bar.add_task("waiting for the run", total=None)
        answer: dict[str, int] = run.wait_until(
            ask,
            lambda seen: seen["landed"] >= expected.landed,
            f"{expected.landed} records to land",
            settings.patience,
            lambda seen: bar.update(
                task, description=f"waiting for the run: {seen['landed']:,} records published"
            ),
        )
    return answer


async def _snapshot(
    console: Console, settings: run.Settings, stores: Stores, slug: str, lake_version: int
) -> tuple[Path, str]:
    """The snapshot of at least this lake version, and its answer."""
    deadline = time.monotonic() + settings.patience
    with progress(console) as bar:
        bar.add_task("waiting for the next snapshot", total=None)
        while True:
            pointer = await read_pointer(stores.objects, stores.database)
            if pointer is not None and pointer.lake_version >= lake_version:
                break
            if time.monotonic() > deadline:
                raise run.DemoError(f"no snapshot of lake version {lake_version} came; see `headrace doctor`")
            time.sleep(1)  # noqa: ASYNC251 - nothing else runs in this command
    path = await fetch_latest(stores.objects, stores.database, stores.folder)
    connection = duckdb.connect(str(path), read_only=True)
    try:
        row = connection.execute(QUERY.format(slug=slug)).fetchone()
    finally:
        connection.close()
    return path, canonical(row[0] if row and row[0] is not None else Decimal(0))
