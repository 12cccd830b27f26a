"""Where every record went and whether all sums agree: asked for over HTTP, and watched as a metric."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from prometheus_client import Gauge

from core.clock import rfc3339
from core.conservation import CONSERVED, DAYS, ELEMENTS, GATE, HOURS, SUMS, conservation, verdicts
from core.database import Database, tenant
from core.decimals import canonical
from core.invoices.periods import name
from core.log import Logger
from core.rating import ServicePeriod
from services.billing import documents
from services.billing import invariants_store as store

FATES: Final = ("counted", "duplicates", "quarantined", "rejected")
_KINDS: Final = ("voids", "checkpoints")
MAX_TENANTS: Final = 1_000
"""Listed one by one, those that do not agree first."""
EVERY: Final = 60.0  # seconds
"""Seconds between two looks of the metric."""

OWNED: Final = "every cell belongs to an organisation that exists"
OFFSETS: Final = "every offset below the watermark has landed or is booked as lost"

HOLDS = Gauge(
    "usage_invariant_holds", "1 where this invariant of published usage holds, 0 where not", ["invariant"]
)
RECORDS = Gauge("usage_published_records", "Records of usage.records that are published, by fate", ["fate"])
VERSION = Gauge("usage_published_lake_version", "Lake version that the published cells reflect")

_NAMES: Final = {
    CONSERVED: "conserved", HOURS: "hours", DAYS: "days", SUMS: "sums", ELEMENTS: "elements", OFFSETS: "offsets",
    OWNED: "owned", GATE: "gate",
}  # fmt: skip
"""Of the checks, as values of the label."""

_log = Logger("billing")


class Invariants:
    def __init__(self, app: Database, system: Database) -> None:
        self._app, self._system = app, system

    async def of(self, tenant_id: str | None, period: ServicePeriod | None = None) -> documents.Invariants:
        """Of a tenant; of everybody, and of records that name nobody, for None."""
        lost: Sequence[store.Lost] = ()
        nobodys: Sequence[store.Nobodys] = ()
        if tenant_id is None:
            async with self._system.reader() as connection:
                found = await conservation(connection, period, tenants=MAX_TENANTS)
                lost = await store.lost(connection)
                nobodys = await store.nobodys(connection, most=MAX_TENANTS)
        else:
            with tenant(tenant_id):
                async with self._app.reader() as connection:
                    found = await conservation(connection, period, tenants=MAX_TENANTS)
        return judged(tenant_id, period, found, lost, nobodys)

    async def watch(self) -> None:
        """Keep the metric true, for ever. Where PostgreSQL is away it says what it said last."""
        while True:
            try:
                show(await self.of(None))
            except Exception as error:
                _log.warn("invariants were not looked at", error=type(error).__name__)
            await asyncio.sleep(EVERY)


def judged(
    tenant_id: str | None,
    period: ServicePeriod | None,
    found: Mapping[str, Any],
    lost: Sequence[store.Lost],
    nobodys: Sequence[store.Nobodys],
) -> documents.Invariants:
    """The document, with a verdict on each thing that must hold."""
    partitions: list[Any] = [row | {"holds": _conserved(row)} for row in found["partitions"] or ()]
    checks = verdicts(found, period)
    if tenant_id is None:
        checks[OFFSETS] = _all_accounted_for(partitions, found["watermark"] or (), lost)
        checks[OWNED] = not nobodys
    return {
        "object": "invariants",
        "tenant": tenant_id,
        "period": None if period is None else name(period),
        "partitions": partitions,
        "totals": _sums(partitions),
        "tenants": [_tenant(row) for row in found["tenants"] or ()],
        "has_more_tenants": found["tenants_in_all"] > MAX_TENANTS,
        "meters": [] if period is None else [_meter(row) for row in found["meters"] or ()],
        "lost": [_lost(one) for one in lost],
        "nobodys": [_nobodys(one) for one in nobodys],
        "checks": [{"name": name, "holds": holds} for name, holds in checks.items()],
        "lake_version": found["lake_version"],
        "slice": found["slice"],
        "holds": all(checks.values()),
    }


def show(proof: documents.Invariants) -> None:
    """The metric of what was found."""
    for check in proof["checks"]:
        HOLDS.labels(_NAMES[check["name"]]).set(check["holds"])
    totals: Mapping[str, Any] = proof["totals"]
    for fate in FATES:
        RECORDS.labels(fate).set(totals[fate])
    VERSION.set(proof["lake_version"] or 0)


def _all_accounted_for(
    partitions: Sequence[Mapping[str, Any]],
    watermark: Sequence[tuple[str, int, int]],
    lost: Sequence[store.Lost],
) -> bool:
    landed = {(row["topic_id"], row["partition"]): row["landed"] for row in partitions}
    gone: Counter[tuple[str, int]] = Counter()
    for one in lost:
        gone[one.topic_id, one.partition] += 0 if one.end is None else one.end - one.first
    return all(
        landed.get((topic_id, partition), 0) + gone[topic_id, partition] == offset
        for topic_id, partition, offset in watermark
    )


def _conserved(row: Mapping[str, Any]) -> bool:
    return bool(row["landed"] == sum(row[fate] for fate in FATES))


def _sums(rows: Sequence[Mapping[str, Any]]) -> documents.Fates:
    return {
        "landed": sum(row["landed"] for row in rows),
        "counted": sum(row["counted"] for row in rows),
        "duplicates": sum(row["duplicates"] for row in rows),
        "quarantined": sum(row["quarantined"] for row in rows),
        "rejected": sum(row["rejected"] for row in rows),
        "voids": sum(row["voids"] for row in rows),
        "checkpoints": sum(row["checkpoints"] for row in rows),
    }


def _tenant(row: Mapping[str, Any]) -> documents.TenantFates:
    return {
        **_sums([row]),
        "tenant": row["tenant_id"],
        "hour_events": row["hour_events"],
        "day_events": row["day_events"],
        "holds": row["conserved"] and row["in_hours"] and row["in_days"],
    }


def _meter(row: Mapping[str, Any]) -> documents.MeterOfPeriod:
    return {
        "tenant": row["tenant_id"],
        "meter": row["meter"],
        "events": row["hour_events"],
        "quantity": _quantity(row["hour_quantity"]),
        "day_events": row["day_events"],
        "day_quantity": _quantity(row["day_quantity"]),
        "holds": row["holds"],
    }


def _quantity(text: str | None) -> str | None:
    return None if text is None else canonical(Decimal(text))


def _lost(one: store.Lost) -> documents.LostRange:
    return {
        "topic_id": one.topic_id,
        "partition": one.partition,
        "first_offset": one.first,
        "end_offset": one.end,
        "kind": one.kind,
        "reason": one.reason,
        "accepted_by": one.accepted_by,
        "accepted_at": rfc3339(one.accepted_at),
    }


def _nobodys(one: store.Nobodys) -> documents.UsageOfNobody:
    return {
        "tenant": one.tenant_id,
        "events": one.events,
        "first_hour": rfc3339(one.first),
        "last_hour": rfc3339(one.last),
    }
