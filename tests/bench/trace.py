"""How long a trace takes, both ways, as the lake grows around it.

    make bench NAME=trace [ARGS="--rows 1000000 --asked 1000 --slice 50000"]

Billing and lookup run as services on tables and a folder. A few organisations have a month that was closed,
adjusted, repriced and adjusted again; lines and events are drawn at random, each answer is checked (the line computes
again from its events; the event's state is the one that was sent), and a wrong one ends the bench. Then other
organisations' events of the same month land beside them, slice by slice, put together as the schedule would
(`pipelines.maintenance`), and the same is asked again: what they cost is what an organisation pays for its neighbours. Wall-clock time of one request after the other, and CPU-seconds
of the two services, which other work of the machine does not change.
"""

import argparse
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from assets.usage import schema
from core.lake import Lake
from core.lake.maintenance import compact, crowded
from core.settings import CacheSettings
from deploy.servers.postgres import postgres as postgres_server
from deploy.servers.valkey import valkey as valkey_server
from pipelines.maintenance import MOST_SMALL_FILES
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.bench.workload import Workload
from tests.servers import database_settings, free_port, running
from tests.services.lookup.world import CLOSED, DAYS, ELEMENTS, INVOICES, OPEN, World, history, platform

LATE = 300
"""Events of the organisations that land behind their neighbours'."""


class Neighbours(Workload):
    """Usage of other organisations, of the month that is closed."""

    def __init__(self, events: int, slices: int) -> None:
        super().__init__(schema.TOPIC, events, slices=slices)
        self._start = CLOSED


class Asked:
    """Events of a world, and lines of each organisation's newest document: that one rests on all slices so far."""

    def __init__(self, world: World, number: int) -> None:
        pick = random.Random(3)
        self._world = world
        lines = [
            (tenant, document["id"], line, document["lines"][line - 1])
            for tenant in world.tenants
            for document in world.documents(tenant)[-1:]
            for line in range(1, len(document["lines"]) + 1)
        ]
        self.lines = pick.choices(lines, k=number)
        self.events = pick.choices(sorted(world.events), k=number)

    def measure(self) -> dict[str, "Cost"]:
        """Of traces from lines, and of those from events."""
        return {
            "line": Cost.of(lambda one=one: self._line(*one) for one in self.lines),  # type: ignore[misc]
            "event": Cost.of(lambda one=one: self._event(*one) for one in self.events),  # type: ignore[misc]
        }

    def _line(self, tenant: str, document: str, line: int, said: Any) -> None:
        page = self._world.on.call("GET", f"{INVOICES}/{document}/lines/{line}/events", tenant=tenant)
        if not page["proof"]["verified"] or page["proof"]["recomputed"]["amount"] != said["amount"]:
            raise SystemExit(f"{document}:{line} does not compute to what it says: {page['proof']}")

    def _event(self, tenant: str, source: str, event_id: str) -> None:
        params = {"source": source, "id": event_id}
        found = self._world.on.call("GET", "/api/v1/usage/trace", tenant=tenant, params=params)
        key = (tenant, source, event_id)
        fate, event = self._world.fates[key], self._world.events[key]
        expected = {"invoiced", "not_invoiced", "unpriced"} if fate == "counted" else {fate}
        if fate == "counted" and event.data.meter in ELEMENTS and event.time < OPEN:
            expected.add("no_difference")  # it is late, and another one decides
        if found["state"] not in expected:
            raise SystemExit(f"{source} {event_id} is {found['state']}, not {fate}")


@dataclass(frozen=True)
class Cost:
    """Seconds of each answer, and CPU-seconds of the services for one."""

    seconds: list[float]
    cpu: float

    @classmethod
    def of(cls, asked: Iterable[Callable[[], None]]) -> "Cost":
        services = [one for one in psutil.Process().children() if "services." in one.cmdline()[-1]]
        before, seconds = sum(map(server_cpu, services)), list[float]()
        for work in asked:
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return cls(seconds, (sum(map(server_cpu, services)) - before) / len(seconds))

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.seconds, n=20)[-1]


def care(lake: Lake) -> None:
    for table in crowded(lake, MOST_SMALL_FILES):
        compact(lake, table, order=schema.ORDERS.get(table, ()))


def files(lake: Lake) -> int:
    handle = lake.open(schema.EVENTS)
    return 0 if handle is None else len(handle.file_uris())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="events of neighbours in the large lake")
    parser.add_argument("--asked", type=int, default=1_000, help="lines and events asked for, each")
    parser.add_argument("--slice", type=int, default=50_000, help="of them in one slice")
    arguments = parser.parse_args()
    slices = arguments.rows // arguments.slice
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, password = Path(name), secrets.token_hex(16)
        ports = free_port(), free_port()
        stack.enter_context(running(postgres_server(folder / "pg", ports[0], password), folder / "pg.log"))
        stack.enter_context(
            running(valkey_server(folder / "cache", ports[1], password), folder / "cache.log")
        )
        cache = CacheSettings(cache_url=f"redis://127.0.0.1:{ports[1]}/0", cache_password=password)
        (folder / "lake").mkdir()
        database = database_settings(ports[0], password)
        on = stack.enter_context(platform(folder / "lake", database, cache))
        world = history(on)
        small = Asked(world, arguments.asked).measure()
        workload = Neighbours(arguments.slice, slices)
        for number in range(1, slices + 1):
            on.site.append(workload.slice(number))
            on.site.carry()
            care(on.site.lake())
            print(f"{number * arguments.slice} events of neighbours", flush=True)
        world.land(LATE, CLOSED, DAYS)
        world.bill("adjustments")
        large = Asked(world, arguments.asked).measure()
        figures: dict[str, Any] = {
            "lines_and_events_asked": arguments.asked,
            "rows_of_small_lake": len(world.events) + world.duplicates,
            "rows_of_large_lake": len(world.events) + world.duplicates + slices * arguments.slice,
            "files_of_large_lake": files(on.site.lake()),
        }
        for size, found in (("small", small), ("large", large)):
            for way, cost in found.items():
                figures[f"{way}_in_{size}_lake"] = {
                    "p50_ms": round(statistics.median(cost.seconds) * 1000),
                    "p95_ms": round(cost.p95 * 1000),
                    "cpu_ms_of_billing_and_lookup": round(cost.cpu * 1000, 1),
                }
        ratios = {f"{way}_p95_large_to_small": large[way].p95 / small[way].p95 for way in small}
        ratios |= {f"{way}_cpu_large_to_small": large[way].cpu / small[way].cpu for way in small}
        report.write("trace", ratios, figures)


if __name__ == "__main__":
    main()
