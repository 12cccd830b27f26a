"""`make bench NAME=ws`: messages per CPU-second to 1,000 sockets that follow one run, and how late they are.

The server is `python -m services.ws` as it ships, on its event log: events are appended to
`agent.events` and come out of every socket. FastAPI on uvicorn, in the same run, gets the same frames
handed over by HTTP and has no log to read. Only the CPU of the server's process is counted.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from core.contracts.agents import AgentEvent
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from deploy.component import Component
from deploy.servers.postgres import postgres
from deploy.servers.valkey import valkey
from services.common.principal import HEADER, Principal, sign
from services.ws.frames import event_prefix
from tests.bench import report
from tests.servers import database_settings, free_port, start, stop
from tests.services.common.run_events import Run, records
from tests.services.process import REPOSITORY, environment, service
from tests.services.ws.agents_double import AgentsDouble

LOG = EventLogSettings(eventlog_url="postgresql:")
BATCH = 10


@dataclass
class Measured:
    per_cpu_second: list[float] = field(default_factory=list)
    paced: list[dict[str, float]] = field(default_factory=list)
    paced_cpu: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "messages_per_cpu_second": round(statistics.median(self.per_cpu_second)),
            "paced_p50_ms": statistics.median(one["p50_ms"] for one in self.paced),
            "paced_p99_ms": statistics.median(one["p99_ms"] for one in self.paced),
            "paced_cpu_seconds": round(statistics.median(self.paced_cpu), 2),
        }


class Load:
    """The clients' process."""

    def __init__(self, port: int, count: int, folder: Path, plan: dict[str, Any]) -> None:
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(plan))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.ws_peers", "clients", str(port), str(count), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip

    async def line(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            raise RuntimeError("the clients' process ended")
        return line

    async def expect(self, frames: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{frames}\n")
        self.process.stdin.flush()
        await self.line()


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _stamped(run: Run, count: int) -> list[AgentEvent]:
    return [
        run.event("message.delta", ts=10**18 + time.monotonic_ns(), message="msg_1", offset=0, text="token ")
        for _ in range(count)
    ]


class Ours:
    """Appends to the log."""

    def __init__(self, log: EventLog, run: Run) -> None:
        self._log, self._run = log, run

    async def publish(self, count: int) -> None:
        await self._log.append(records(_stamped(self._run, count)))


class Rival:
    """Hands the same frames to FastAPI."""

    def __init__(self, http: aiohttp.ClientSession, port: int, run: Run) -> None:
        self._http, self._url, self._run = http, f"http://127.0.0.1:{port}/publish", run
        self._prefix = event_prefix(f"run:{run.id}").decode()

    async def publish(self, count: int) -> None:
        texts = [
            f'{self._prefix}1,"seq":{event.seq},"event":{event.encode().decode()}}}'
            for event in _stamped(self._run, count)
        ]
        async with self._http.post(self._url, data="\n".join(texts).encode()) as answer:
            assert answer.status == 200


async def _flat_out(
    into: Measured, source: Ours | Rival, load: Load, pid: int, events: int, count: int
) -> None:
    await load.expect(events)
    before = _cpu(pid)
    for _ in range(events // BATCH):
        await source.publish(BATCH)
    await load.line()
    into.per_cpu_second.append(events * count / (_cpu(pid) - before))


async def _paced(into: Measured, source: Ours | Rival, load: Load, pid: int, seconds: int) -> None:
    await load.expect(seconds * 20)
    before, began = _cpu(pid), time.monotonic()
    for number in range(seconds * 20):
        await asyncio.sleep(max(began + number / 20 - time.monotonic(), 0))
        await source.publish(1)
    into.paced.append(json.loads(await load.line()))
    into.paced_cpu.append(_cpu(pid) - before)


async def _tickets(http: aiohttp.ClientSession, address: str, key: bytes, run: Run, count: int) -> list[str]:
    found = []
    for number in range(count):
        caller = Principal(
            tenant_id=run.tenant,
            subject=f"usr_{number}",
            kind="user",
            scopes=frozenset({"agents:read", "org:admin"}),
        )
        async with http.post(f"{address}/api/v1/ws/tickets", headers={HEADER: sign(caller, key)}) as answer:
            found.append((await answer.json())["ticket"])
    return found


async def _measure(
    options: argparse.Namespace,
    folder: Path,
    stack: ExitStack,
    database: DatabaseSettings,
    variables: dict[str, str],
) -> None:
    key, run = bytes.fromhex(variables["HEADRACE_INTERNAL_KEY"]), Run()
    double = AgentsDouble(key)
    double.runs[run.id] = {"tenant": run.tenant, "user": run.user, "conversation": run.conversation}

    def begin(component: Component) -> int:
        process = start(component, folder / f"{component.name}.log")
        stack.callback(stop, component, process)
        return process.pid

    async with (
        open_eventlog(LOG, database) as log,
        aiohttp.ClientSession() as http,
        double.serving(int(variables["HEADRACE_AGENTS_URL"].rpartition(":")[2])),
    ):
        await log.ensure_topics(list(TOPICS.values()))
        ports = free_port(), free_port()
        ours_pid = await asyncio.to_thread(begin, service("ws", ports[0], variables))
        rival_pid = await asyncio.to_thread(begin, _rival(ports[1]))
        address = f"http://127.0.0.1:{ports[0]}"
        subscribe = {"t": "req", "id": 1, "method": "subscribe", "params": {"ch": f"run:{run.id}"}}
        tickets = await _tickets(http, address, key, run, options.clients)
        loads = []
        for index, plan in enumerate(
            ({"tickets": tickets, "request": json.dumps(subscribe)}, {"tickets": [], "request": ""})
        ):
            load = Load(ports[index], options.clients, folder / f"load-{index}", plan)
            stack.callback(load.process.kill)
            assert await load.line() == "ready\n"
            loads.append(load)
        ours, rival = Measured(), Measured()
        sides = (
            (ours, Ours(log, run), loads[0], ours_pid),
            (rival, Rival(http, ports[1], Run()), loads[1], rival_pid),
        )
        for _ in range(options.rounds):
            for into, source, load, pid in sides:
                # Ours needs more of them for a time that the kernel's clock can measure.
                events = options.events * (10 if into is ours else 1)
                await _flat_out(into, source, load, pid, events, options.clients)
        for into, source, load, pid in sides:
            await _paced(into, source, load, pid, options.seconds)
        memory = {
            name: psutil.Process(pid).memory_info().rss >> 20
            for name, pid in (("ws", ours_pid), ("fastapi", rival_pid))
        }
    pair = [statistics.median(side.per_cpu_second) for side in (ours, rival)]
    report.write(
        "ws",
        {
            "messages_per_cpu_second_against_fastapi": pair[0] / pair[1],
            "paced_cpu_of_fastapi_against_ours": statistics.median(rival.paced_cpu)
            / statistics.median(ours.paced_cpu),
        },
        {
            "ws": {**ours.figures(), "rss_mb": memory["ws"]},
            "fastapi": {**rival.figures(), "rss_mb": memory["fastapi"]},
            "clients": options.clients,
        },
    )


def _rival(port: int) -> Component:
    return Component(
        name="fastapi",
        argv=(sys.executable, "-m", "tests.bench.ws_peers", "fastapi", str(port)),
        env={},
        cwd=REPOSITORY,
        ready=lambda: any(
            c.laddr[1] == port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ws")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ws-bench-") as name, ExitStack() as stack:
        folder, password = Path(name), secrets.token_hex(16)
        ports = free_port(), free_port()
        for component in (
            postgres(folder / "postgres", ports[0], password),
            valkey(folder / "valkey", ports[1], password),
        ):
            process = start(component, folder / f"{component.name}.log")
            stack.callback(stop, component, process)
        database = database_settings(ports[0], password)
        cache = CacheSettings(cache_url=f"redis://127.0.0.1:{ports[1]}/0", cache_password=password)
        variables = environment(folder, database, cache, users_port=free_port(), gateway_port=free_port())
        variables |= {"HEADRACE_AGENTS_URL": f"http://127.0.0.1:{free_port()}", "HEADRACE_LOG_LEVEL": "warn"}
        asyncio.run(_measure(options, folder, stack, database, variables))


if __name__ == "__main__":
    main()
