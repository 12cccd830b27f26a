"""Sends a file to a tenant through the public API; killed at any moment, the next run goes on.

The checkpoint says how many events of the file were acknowledged and which of them were refused, so that the
report is that of an import which nothing disturbed. For the rest it only saves time: what is sent twice has
the same identity and lands as a duplicate.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from core.clock import rfc3339
from core.contracts.usage import UsageEvent
from core.meters import METERS
from deploy.client import Client
from deploy.imports.checkpoint import Checkpoint
from deploy.imports.mapping import BadRow, ImportFileError, Mapped
from deploy.imports.reader import Scan, events, scan

BATCH = 1000
IN_FLIGHT = 4
"""Batches on the way at once: enough to keep the API busy, few enough to stay in its bounds."""


@dataclass(slots=True)
class ImportReport:
    tenant: str
    source: str
    rows: int
    events: int
    accepted: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    bad_rows: list[dict[str, object]] = field(default_factory=list)
    rounded: int = 0
    """Events whose quantity was rounded, where that was asked for."""
    resumed_from: int = 0
    """Events that an earlier, interrupted run had already sent; the other fields speak of both runs."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(path: Path, mapped: Mapped) -> Scan:
    """Read the whole file before anything is made or sent.

    Raises:
        ImportFileError: a meter is not known, the file cannot be read at all, or has no row to import.
    """
    if unknown := sorted(set(mapped.meters) - set(METERS)):
        known = ", ".join(sorted(METERS))
        raise ImportFileError(f"there is no meter {', '.join(unknown)}; known: {known}")
    found = scan(path, mapped)
    if found.first is None or found.last is None:
        reasons = "; ".join(f"line {bad.line}: {bad.reason}" for bad in found.bad[:3])
        raise ImportFileError(f"{path} has no row that can be imported{': ' + reasons if reasons else ''}")
    return found


def run_import(
    client: Client,
    path: Path,
    mapped: Mapped,
    *,
    tenant_id: str,
    tenant_name: str,
    checkpoints: Path,
    found: Scan | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Send every good row of `path` and report the rest.

    Args:
        found: what `examine` found in the file, where the caller has asked already.
        checkpoints: folder for the state of unfinished imports.
        progress: called with (events acknowledged, events in all).

    Raises:
        ImportFileError: as `examine`.
        ApiError, PlatformUnreachableError: from the API; the next run goes on where this one stopped.
    """
    found = found or examine(path, mapped)
    if found.first is None or found.last is None:
        raise ImportFileError(f"{path} has no row that can be imported")
    report = ImportReport(tenant_name, mapped.source, found.rows, found.events, rounded=found.rounded)
    report.bad_rows = [asdict(bad) for bad in found.bad]  # the whole file is scanned each time
    declared = client.post(
        "/api/v1/usage/imports",
        {"source": mapped.source, "period_start": rfc3339(found.first), "period_end": _end(found.last)},
    )
    checkpoint = Checkpoint(checkpoints / f"{fingerprint(tenant_id, mapped, found.sha256)}.json")
    reached = checkpoint.read()
    report.resumed_from = done = reached.acknowledged
    report.accepted, report.refused = reached.accepted, reached.refused
    stream = (
        item
        for item in events(path, mapped, tenant=tenant_id, importid=declared["id"])
        if not isinstance(item, BadRow)
    )
    for batch, answer in send(client, islice(stream, done, None)):
        done += len(batch)
        report.accepted += answer["accepted"]
        refused = [verdict for verdict in answer["verdicts"] if verdict["status"] != "accepted"]
        report.refused += refused
        checkpoint.write(done, report.accepted, refused)
        progress(done, found.events)
    checkpoint.remove()
    return report


def send(client: Client, stream: Iterator[UsageEvent]) -> Iterator[tuple[list[UsageEvent], Any]]:
    """Post events in batches, several at once; yield each batch with its answer, in the order sent."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        pending: list[tuple[list[UsageEvent], Future[Any]]] = []
        exhausted = False
        while pending or not exhausted:
            while not exhausted and len(pending) < IN_FLIGHT:
                batch = list(islice(stream, BATCH))
                if not batch:
                    exhausted = True
                    break
                pending.append((batch, pool.submit(_post, client, batch)))
            if pending:
                wait([pending[0][1]], return_when=FIRST_COMPLETED)
                batch, answer = pending.pop(0)
                yield batch, answer.result()


def _post(client: Client, batch: list[UsageEvent]) -> Any:
    body = b"[" + b",".join(event.encode() for event in batch) + b"]"
    return client.call("POST", "/api/v1/usage/events", content=body)


def _end(last: datetime) -> str:
    """The API's times have milliseconds: round the end of the period up, or the last row lies outside."""
    return rfc3339(last + timedelta(milliseconds=1))


def fingerprint(tenant_id: str, mapped: Mapped, sha256: str) -> str:
    """Names the checkpoint: of one file for one tenant, read in one way."""
    parts = [tenant_id, mapped.source, mapped.time_column, json.dumps(dict(mapped.meters)), sha256]
    if mapped.columns:
        parts.append(f"columns {json.dumps(mapped.columns)}")
    if mapped.relative:
        parts.append(f"times {mapped.relative.unit} {mapped.relative.origin.isoformat()}")
    if mapped.round_quantities:
        parts.append("rounded")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
