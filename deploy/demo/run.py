"""The demo: a real request trace becomes an invoice and a snapshot, and every record has its fate.

It only does what users do: the public API, the topic, the snapshot file. The runs in between are
started by the platform's own sensor.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.clock import now, rfc3339
from core.contracts.usage import UsageEvent
from core.eventlog import open_eventlog
from core.settings import DatabaseSettings, EventLogSettings
from deploy.client import Client, Operator
from deploy.demo import memory, mischief, oracle
from deploy.imports.mapping import BadRow, Mapped
from deploy.imports.reader import events
from deploy.imports.runner import ImportReport, run_import, send

MAPPED_COLUMNS = {"llm.tokens.input": "ContextTokens", "llm.tokens.output": "GeneratedTokens"}
RESENT_EVERY = 20
QUOTA_TENANT = "demo-quota"


class DemoError(Exception):
    """The platform's figures are not the oracle's, or did not come in time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo needs of an installation."""

    gateway_url: str
    eventlog: EventLogSettings
    database: DatabaseSettings
    checkpoints: Path
    patience: float = 300.0
    """Seconds to wait for a stage before giving up."""


@dataclass(frozen=True, slots=True)
class Sent:
    tenant_id: str
    report: ImportReport
    resent: int
    refused: dict[str, int]
    """Verdict code to number of events the API refused with it."""


def mapped(source: str) -> Mapped:
    return Mapped(source, "TIMESTAMP", MAPPED_COLUMNS)


async def send_all(
    settings: Settings, operator: Operator, trace: Path, slug: str, progress: Callable[[int, int], None]
) -> Sent:
    """Import the trace, send every 20th event again, and misbehave in every way the contract names."""
    tenant_id, source = operator.ensure_tenant(slug), f"demo/{slug}"
    with Client(settings.gateway_url, operator.tenant_key(slug)) as client:
        report = run_import(
            client, trace, mapped(source), tenant_id=tenant_id, tenant_name=slug,
            checkpoints=settings.checkpoints, progress=progress,
        )  # fmt: skip
        importid = client.post(
            "/api/v1/usage/imports",
            {"source": source, "period_start": "2000-01-01T00:00:00Z", "period_end": rfc3339(now())},
        )["id"]
        again = [
            event
            for index, event in enumerate(_events(trace, source, tenant_id, importid))
            if index % RESENT_EVERY == 0
        ]
        for _, answer in send(client, iter(again)):
            if answer["refused"]:
                raise DemoError(f"the API refused a repeated event: {answer['verdicts']}")
        refused = _send_refused(client, tenant_id, source)
    bad = [*mischief.unreadable_records(tenant_id, source), *mischief.ancient_records(tenant_id, source)]
    originals = list(islice(_events(trace, source, tenant_id, importid), 5))
    async with open_eventlog(settings.eventlog, settings.database) as log:
        await _relayed(settings, tenant_id, report.events + len(again))
        await log.append([*bad, *mischief.conflicting_records(originals)])
    return Sent(tenant_id, report, len(again), refused)


def _events(trace: Path, source: str, tenant_id: str, importid: str) -> Iterator[UsageEvent]:
    for item in events(trace, mapped(source), tenant=tenant_id, importid=importid):
        if not isinstance(item, BadRow):
            yield item


def _send_refused(client: Client, tenant_id: str, source: str) -> dict[str, int]:
    """Raises: DemoError where a verdict is not the one the contract names."""
    bad = mischief.refused_events(tenant_id, source)
    answer = client.post("/api/v1/usage/events", [event for event, _ in bad])
    codes = [verdict.get("code", verdict["status"]) for verdict in answer["verdicts"]]
    if codes != [code for _, code in bad]:
        raise DemoError(f"verdicts of bad events: expected {[code for _, code in bad]}, got {codes}")
    return {code: codes.count(code) for code in sorted(set(codes))}


async def _relayed(settings: Settings, tenant_id: str, at_least: int) -> None:
    """Wait until what the API accepted stands in the topic, so that a conflict comes second."""
    deadline = time.monotonic() + settings.patience
    while (await expected(settings, tenant_id)).landed < at_least:
        if time.monotonic() > deadline:
            raise DemoError(
                "accepted events did not reach usage.records; is the relay running? See `headrace doctor`"
            )
        await asyncio.sleep(0.5)


async def expected(settings: Settings, tenant_id: str) -> oracle.Fates:
    """The fates of everything the tenant ever had in the topic, by the oracle; raises what `read` does."""
    return (await read(settings, tenant_id)).known.fates


async def read(settings: Settings, tenant_id: str) -> memory.Memory:
    """Everything the tenant ever had in the topic, for the oracle to go on with.

    Raises:
        DemoError: some of it was purged before a demo had read it.
    """
    async with open_eventlog(settings.eventlog, settings.database) as log:
        found = memory.load(settings.checkpoints, tenant_id, (await log.topic(mischief.TOPIC)).id)
        for partition, bounds in (await log.bounds(mischief.TOPIC)).items():
            start = found.next.get(partition, bounds.low)
            if start < bounds.low:
                raise DemoError(
                    f"records of partition {partition} from offset {start} on were purged before a demo had read them, so "
                    "nothing can be compared any more; `headrace demo` with another trace makes a tenant of its own"
                )
            async for batch in log.read(mischief.TOPIC, partition, start, bounds.high):
                records = ((record.key, record.value, record.timestamp_ms) for record in batch)
                oracle.replay(records, tenant_id, found.known)
            found.next[partition] = bounds.high
    return found


def wait_until(
    ask: Callable[[], Any],
    good: Callable[[Any], bool],
    what: str,
    patience: float,
    tick: Callable[[Any], None],
) -> Any:
    """Ask each second until the answer is good.

    Raises:
        DemoError: with the last answer, after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        answer = ask()
        tick(answer)
        if good(answer):
            return answer
        if time.monotonic() > deadline:
            raise DemoError(
                f"waited {patience:.0f} s for {what}; the last answer was {answer}; see `headrace doctor`"
            )
        time.sleep(1.0)


def measure_quota(settings: Settings, operator: Operator) -> float:
    """Seconds from the answer to a fresh event until the tenant's live usage shows it."""
    tenant_id = operator.ensure_tenant(QUOTA_TENANT)
    with Client(settings.gateway_url, operator.tenant_key(QUOTA_TENANT)) as client:
        before = int(quantity(_live(client, settings.patience), "llm.tokens.output"))
        moment = rfc3339(now())
        event = {
            "specversion": "1.0",
            "type": "headrace.usage.v1",
            "id": f"quota-{moment}",
            "source": "demo/quota",
            "time": moment,
            "tenant": tenant_id,
            "data": {"meter": "llm.tokens.output", "quantity": "1"},
        }
        client.post("/api/v1/usage/events", [event])
        sent = time.monotonic()
        while int(quantity(client.get("/api/v1/usage"), "llm.tokens.output")) != before + 1:
            if time.monotonic() - sent > settings.patience:
                raise DemoError("a fresh event did not reach the live usage; see `headrace doctor`")
            time.sleep(0.02)
        return time.monotonic() - sent


def _live(client: Client, patience: float) -> Any:
    """The tenant's usage once the live part is in it. Raises: DemoError."""
    return wait_until(
        lambda: client.get("/api/v1/usage"),
        lambda usage: usage["live"],
        "live usage",
        patience,
        lambda usage: None,
    )


def quantity(usage: Any, meter: str) -> str:
    """The quantity of one meter in an answer of GET /api/v1/usage."""
    return str(usage["quantities"].get(meter, "0"))
