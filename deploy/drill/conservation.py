"""The drill of conservation: generated records go the whole way, and a plain reading of them says what must come out.

Compared to the last digit: the fate of every record by partition and tenant, every hourly and daily cell, and the
place of each record that was not counted.
"""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from assets.usage import schema
from assets.usage.progress import landed_slice
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord, Slice
from core.eventlog.bulk import read_slice
from deploy.drill import records
from deploy.drill.platform import DrillError
from deploy.drill.records import Truth
from deploy.drill.servers import servers
from deploy.drill.usage import Stand, apart
from deploy.drill.usage_kill import Say

PARTITIONS = 6
BATCH = 20_000
SHOWN = 5
FATES = ("counted", "duplicates", "quarantined", "rejected")


def carry_out(stand: Stand, count: int, seed: int, say: Say) -> dict[str, Any]:
    """Send `count` records, land and publish them, and compare.

    Raises:
        DrillError: naming the first things that are not as the oracle says.
    """
    stand.reset()
    began = time.monotonic()
    sent = _send(stand, count, seed)
    say(f"{count} records are in the log after {time.monotonic() - began:.0f} s")
    truth = _read(stand, sent)
    say(f"the oracle has read them: {dict(_by_fate(truth))}")
    began = time.monotonic()
    stand.calm()
    seconds = time.monotonic() - began
    problems = compare(stand, truth)
    if problems:
        raise DrillError("; ".join(problems))
    say(f"landed, rolled up, published, purged in {seconds:.0f} s; everything is as the oracle says")
    return {
        "seed": seed,
        "records": count,
        "partitions": len({partition for _, partition, _ in truth.fates}),
        "tenants": len({tenant for tenant, _, _ in truth.fates}),
        "slices": landed_slice(stand.lake()),
        "fates": dict(_by_fate(truth)),
        "late": truth.late,
        "hourly_cells": len(truth.hours),
        "daily_cells": len(truth.days()),
        "listed": len(truth.listed),
        "seconds": round(seconds, 1),
        "equal": True,
    }


def _send(stand: Stand, count: int, seed: int) -> int:
    """Send a stream; returns a sum over its records that does not depend on their order."""
    made, sent = records.stream(seed, count, datetime.now(UTC)), 0
    while batch := list(islice(made, BATCH)):
        sent += sum(_mark(key, value) for key, value in batch)
        stand.send([NewRecord(schema.TOPIC, key, value) for key, value in batch])
    return sent


def _read(stand: Stand, sent: int) -> Truth:
    """Read the log back, partition by partition, before anything has landed."""

    async def where() -> tuple[str, Mapping[int, int]]:
        async with open_eventlog(stand.eventlog, stand.database) as log:
            bounds = await log.bounds(schema.TOPIC)
            return (await log.topic(schema.TOPIC)).id, {p: bound.high for p, bound in bounds.items()}

    topic_id, highs = asyncio.run(where())
    truth, seen = Truth(), 0

    def of(partition: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        nonlocal seen
        piece = Slice(schema.TOPIC, topic_id, {partition: (0, highs[partition])})
        for batch in read_slice(stand.eventlog, stand.database, piece, headers=False):
            for one in batch:
                seen += _mark(one.key, one.value)
                yield one.offset, one.key, one.value, one.timestamp_ms

    for partition in sorted(highs):
        if truth.read(partition, of(partition)) != highs[partition]:
            raise DrillError(
                f"partition {partition} ends at {highs[partition]} and did not give as many records"
            )
    if seen != sent:
        raise DrillError("the log does not hold what was sent")
    return truth


def _mark(key: bytes, value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key + b"\0" + value, digest_size=16).digest())


def _by_fate(truth: Truth) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, _, fate), number in truth.fates.items():
        found[fate] += number
    return found


def compare(stand: Stand, truth: Truth) -> list[str]:
    """What differs, a few of each kind; nothing where all is equal."""
    fates: Counter[tuple[str, int, str]] = Counter()
    problems = []
    for tenant, partition, landed, *counts in stand.sql(
        "select tenant_id, partition, sum(landed)::bigint, sum(counted)::bigint, sum(duplicates)::bigint, "
        "sum(quarantined)::bigint, sum(rejected)::bigint from usage_conservation group by 1, 2"
    ):
        if landed != sum(counts):
            problems.append(
                f"partition {partition}, tenant {tenant}: {landed} landed, {sum(counts)} have a fate"
            )
        fates.update({(tenant, partition, fate): n for fate, n in zip(FATES, counts, strict=True) if n})
    problems += _differing("fate", truth.fates, fates)
    for grain, expected in (("hour", truth.hours), ("day", truth.days())):
        problems += _differing(f"{grain}ly cell", expected, _cells(stand, grain))
    listed = {
        (partition, offset): fate
        for partition, offset, fate in stand.sql("select partition, log_offset, fate from usage_quarantine")
    }
    return problems + _differing("record not counted", truth.listed, listed)


def _cells(stand: Stand, grain: str) -> dict[records.Cell, list[int]]:
    rows = stand.sql(
        "select tenant_id, meter, dimensions, period_start, (quantity * 1000000000)::numeric(38, 0)::text, events "
        f"from usage_cell where grain = '{grain}'"
    )
    return {
        (tenant, meter, records.sorted_json(dimensions), start.astimezone(UTC)): [int(units), events]
        for tenant, meter, dimensions, start, units, events in rows
    }


def _differing(what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> list[str]:
    wrong = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    return [
        f"{what} {key}: expected {expected.get(key)}, found {found.get(key)}"
        for key in sorted(wrong, key=str)[:SHOWN]
    ] + ([f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else [])


def drill(folder: Path, profile: str, port_base: int, count: int, seed: int, say: Say) -> dict[str, Any]:
    """The drill on servers of its own below `folder`.

    Raises:
        DrillError
    """
    with servers(folder / "servers", profile, port_base, say) as (database, eventlog, objects):
        stand = Stand(database, eventlog, apart(objects, folder, "oracle"), folder / "oracle")
        return {"profile": profile, **carry_out(of_size(stand, count), count, seed, say)}


def of_size(stand: Stand, count: int) -> Stand:
    """With the drill's partitions, slices of a fitting size, and patience for all of them."""
    return replace(stand, partitions=PARTITIONS, most=max(2_000, count // 8), patience=3_600.0)
