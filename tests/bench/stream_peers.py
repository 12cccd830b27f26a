"""What others would roll usage up with: the same topic, exact dedupe, sums by hour, tenant, meter, dimensions.

Run by the Python of an environment that has the peer, never by ours:

    ENVIRONMENT/bin/python tests/bench/stream_peers.py bytewax|quixstreams|pathway BROKERS TOPIC

Prints one line of JSON: `cpu_seconds` and `wall_seconds` of the work (libraries are imported before),
`peak_mb`, and the answer: `cells`, `events`, `quantity`, `digest`. Each peer does it as its manual says, with
what makes it faster: batches, orjson, integers for quantities, sums of a batch before they go on.
"""

import hashlib
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Cells = dict[str, tuple[int, int]]
"""`hour|tenant|meter|dimensions` to quantity and number of events."""
FAST: Mapping[str, str] = {"fetch.queue.backoff.ms": "10", "queued.max.messages.kbytes": "131072"}
"""librdkafka waits a second by default where its queue is full."""

IDLE_SECONDS = 5.0
"""quixstreams ends when nothing came for so long; that is wall time, no CPU."""

Loads = Callable[[bytes], Any]


def fact(value: bytes, loads: Loads) -> tuple[tuple[str, str, str], str, int] | None:
    """Identity, cell and quantity of a record; None where it cannot be read."""
    try:
        event = loads(value)
        data = event["data"]
        dimensions = json.dumps(data["dimensions"], sort_keys=True, separators=(",", ":"))
        cell = f"{event['time'][:13]}|{event['tenant']}|{data['meter']}|{dimensions}"
        return (event["tenant"], event["source"], event["id"]), cell, int(data["quantity"])
    except (ValueError, KeyError):
        return None


def answer(cells: Cells | Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """What all sides must agree on."""
    lines = sorted(f"{cell}|{quantity}|{events}" for cell, (quantity, events) in cells.items())
    return {
        "cells": len(cells),
        "events": sum(events for _, events in cells.values()),
        "quantity": str(sum(quantity for quantity, _ in cells.values())),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    wall, cpu = time.monotonic(), time.process_time()
    yield found
    found["cpu_seconds"] = round(time.process_time() - cpu, 3)
    found["wall_seconds"] = round(time.monotonic() - wall, 3)
    found["peak_mb"] = peak_mb()


def peak_mb() -> int:
    """Most memory that this process ever had. `ru_maxrss` would begin with that of whoever started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmHWM:"))


def add(cells: Cells, cell: str, quantity: int, events: int = 1) -> None:
    before = cells.get(cell, (0, 0))
    cells[cell] = before[0] + quantity, before[1] + events


def bytewax(brokers: str, topic: str) -> dict[str, Any]:
    """One worker. All ids ever seen in one set; sums of a batch go to the keyed reduction."""
    import orjson  # noqa: PLC0415
    from bytewax import operators as op  # noqa: PLC0415
    from bytewax.connectors.kafka import KafkaSource  # noqa: PLC0415
    from bytewax.dataflow import Dataflow  # noqa: PLC0415
    from bytewax.testing import TestingSink, run_main  # noqa: PLC0415

    seen: set[tuple[str, str, str]] = set()

    def read(batch: list[Any]) -> list[tuple[str, tuple[int, int]]]:
        cells: Cells = {}
        for message in batch:
            found = fact(message.value, orjson.loads)
            if found is not None and found[0] not in seen:
                seen.add(found[0])
                add(cells, found[1], found[2])
        return list(cells.items())

    found: list[tuple[str, tuple[int, int]]] = []
    with measured() as costs:
        flow = Dataflow("usage")
        source = KafkaSource([brokers], [topic], tail=False, batch_size=10_000, add_config=dict(FAST))
        fresh = op.flat_map_batch("read", op.input("in", flow, source), read)
        sums = op.reduce_final("sum", fresh, lambda left, right: (left[0] + right[0], left[1] + right[1]))
        op.output("out", sums, TestingSink(found))
        run_main(flow)
    return {**costs, **answer(dict(found))}


def quixstreams(brokers: str, topic: str) -> dict[str, Any]:
    """Ids in its RocksDB state, without a changelog; sums in the process."""
    import orjson  # noqa: PLC0415
    from quixstreams import Application  # noqa: PLC0415

    cells: Cells = {}

    def fresh(found: Any, state: Any) -> bool:
        if found is None:
            return False
        name = "|".join(found[0])
        if state.exists(name):
            return False
        state.set(name, 1)
        return True

    with measured() as costs, tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=brokers, consumer_group=f"bench-{uuid.uuid4()}", auto_offset_reset="earliest",
            state_dir=folder, use_changelog_topics=False, loglevel="ERROR", consumer_extra_config=dict(FAST),
        )  # fmt: skip
        stream = app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="bytes"))
        stream = stream.apply(lambda value: fact(value, orjson.loads))
        stream = stream.filter(fresh, stateful=True)
        stream = stream.update(lambda found: add(cells, found[1], found[2]))
        app.run(timeout=IDLE_SECONDS, collect=False)
    return {**costs, **answer(cells)}


def pathway(brokers: str, topic: str) -> dict[str, Any]:
    """Static mode: it reads what is there and ends. Dedupe by grouping, as its manual says."""
    import pathway as pw  # noqa: PLC0415

    schema = pw.schema_from_types(event_id=str, tenant=str, source=str, time=str, data=pw.Json)
    settings = {
        "bootstrap.servers": brokers,
        "group.id": f"bench-{uuid.uuid4()}",
        "auto.offset.reset": "earliest",
    }
    cells: Cells = {}

    def changed(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            cells[row["cell"]] = row["quantity"], row["events"]

    @pw.udf  # type: ignore[untyped-decorator]
    def cell(time: str, tenant: str, data: pw.Json) -> str:
        dimensions = json.dumps(data["dimensions"].as_dict(), sort_keys=True, separators=(",", ":"))
        return f"{time[:13]}|{tenant}|{data['meter'].as_str()}|{dimensions}"

    with measured() as costs:
        # `id` is pathway's own name of a row.
        events = pw.io.kafka.read(
            {**settings, **FAST}, topic=topic, schema=schema, format="json", mode="static",
            json_field_paths={"event_id": "/id"},
        )  # fmt: skip
        first = events.groupby(pw.this.tenant, pw.this.source, pw.this.event_id).reduce(
            pw.this.tenant, time=pw.reducers.any(pw.this.time), data=pw.reducers.any(pw.this.data)
        )
        facts = first.select(
            cell=cell(pw.this.time, pw.this.tenant, pw.this.data),
            quantity=pw.unwrap(pw.this.data["quantity"].as_str()).str.parse_int(),
        )
        sums = facts.groupby(pw.this.cell).reduce(
            pw.this.cell, quantity=pw.reducers.sum(pw.this.quantity), events=pw.reducers.count()
        )
        pw.io.subscribe(sums, on_change=changed)
        pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    return {**costs, **answer(cells)}


def main() -> None:
    name, brokers, topic = sys.argv[1:]
    peer = {"bytewax": bytewax, "quixstreams": quixstreams, "pathway": pathway}[name]
    print(json.dumps(peer(brokers, topic)), flush=True)


if __name__ == "__main__":
    main()
