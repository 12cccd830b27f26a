"""The gateway with key check, limits and metering on, against FastAPI + httpx2, nginx and a bare pass-through.

    make bench NAME=gateway [ARGS="--seconds 4 --rounds 3 --connections 32"]

All stand before the same service and are measured in turns within one run, so that the ratios hold on any
machine. Counted are requests per CPU-second of the process itself; the CPU of Valkey and PostgreSQL that the
gateway causes is printed beside it. FastAPI checks the key and limits nothing; nginx maps the key and limits
by it; neither meters. nginx comes from Debian and is installed where it is missing (that needs root).

A provider that says a token each 30 ms is then read straight and through the gateway, in turns.
"""

import argparse
import asyncio
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from core.settings import CacheSettings
from deploy.component import Component
from deploy.provision import debian
from deploy.servers.postgres import postgres
from deploy.servers.valkey import valkey
from tests.bench import report
from tests.bench.gateway_peers import TOKENS
from tests.real_data import REPOSITORY
from tests.servers import database_settings, free_port, start, stop
from tests.services.process import environment, service

REQUEST = (
    b"GET /api/v1/me HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk_live_bench\r\n"
    b"accept: application/json\r\nuser-agent: bench\r\naccept-encoding: gzip, br\r\n\r\n"
)


NGINX = """
daemon off; master_process off; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    map $http_authorization $tenant {{ default ""; "Bearer sk_live_bench" org_bench; }}
    limit_req_zone $tenant zone=tenants:1m rate=100000r/s;
    upstream service {{ server 127.0.0.1:{service}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        if ($tenant = "") {{ return 401; }}
        location / {{
            limit_req zone=tenants burst=100000 nodelay;
            proxy_pass http://service; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Authorization ""; proxy_set_header X-Tenant $tenant;
        }}
    }}
}}
"""


@dataclass
class Measured:
    """Of one server, over all rounds."""

    per_cpu_second: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        ordered = sorted(self.latencies_ms)
        return {
            "requests_per_cpu_second": round(statistics.median(self.per_cpu_second)),
            "requests_per_second": round(statistics.median(self.per_second)),
            "p50_ms": round(ordered[len(ordered) // 2], 2),
            "p99_ms": round(ordered[len(ordered) * 99 // 100], 2),
        }


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, until: float) -> None:
        self.latencies: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._until = until
        self._buffer = b""
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the server closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if b" 200 OK" not in head:
            self.done.set_exception(RuntimeError(f"answered {self._buffer[:300]!r}"))
            self._transport.close()
            return
        if self._length < 0:  # the same answer each time
            self._length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        if len(body) < self._length:
            return
        self._buffer = b""
        now = time.perf_counter()
        self.latencies.append(now - self._began)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()
            self.done.set_result(None)


async def _load(port: int, seconds: float, connections: int) -> list[float]:
    """Seconds of each request."""
    until = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(until), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    return [latency for caller in callers for latency in caller.latencies]


def _cpu(*pids: int) -> float:
    """CPU-seconds of processes and their children so far."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _measure(into: Measured, port: int, pid: int, seconds: float, connections: int) -> None:
    before, began = _cpu(pid), time.perf_counter()
    latencies = uvloop.run(_load(port, seconds, connections))
    took, used = time.perf_counter() - began, _cpu(pid) - before
    into.per_cpu_second.append(len(latencies) / used)
    into.per_second.append(len(latencies) / took)
    into.latencies_ms += [latency * 1000 for latency in latencies]


@dataclass
class Streamed:
    """Seconds of one way to the provider, over all streams."""

    first: list[float] = field(default_factory=list)
    """From the request to the first token."""
    gaps: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """From the moment the provider wrote a token until it is here."""


async def _stream(port: int, into: Streamed) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = last = time.perf_counter()
    writer.write(REQUEST.replace(b"/api/v1/me", b"/v1/tokens"))
    arrived = 0
    while arrived < TOKENS:
        line = await reader.readline()
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        into.late.append(time.monotonic() - float(line.rpartition(b":")[2].strip(b" }\n")))
        (into.gaps if arrived else into.first).append(now - (last if arrived else began))
        last, arrived = now, arrived + 1
    writer.close()
    await writer.wait_closed()


async def _streams(straight: int, through: int, rounds: int) -> tuple[Streamed, Streamed]:
    ways = (Streamed(), Streamed())
    for _ in range(rounds):
        for port, way in zip((straight, through), ways, strict=True):
            await asyncio.gather(*(_stream(port, way) for _ in range(10)))
    return ways


def _ms(seconds: list[float], percent: int) -> float:
    ordered = sorted(seconds)
    return round(ordered[(len(ordered) - 1) * percent // 100] * 1000, 2)


def _nginx(folder: Path, port: int, service_port: int) -> Component:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        if not debian.can_install():
            raise SystemExit("nginx is missing; install it (apt-get install nginx-light) and run this again")
        debian.install(["nginx-light"], lambda line: print(line, file=sys.stderr))
        program = "/usr/sbin/nginx"
    (folder / "nginx").mkdir()
    configuration = folder / "nginx" / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder / "nginx", port=port, service=service_port))
    return Component(
        name="nginx",
        argv=(program, "-e", "stderr", "-p", str(folder / "nginx"), "-c", str(configuration)),
        env={},
        cwd=folder,
        ready=lambda: _listens(port),
    )


def _listens(port: int) -> bool:
    found = psutil.net_connections("tcp")
    return any(c.status == "LISTEN" and c.laddr and c.laddr[1] == port for c in found)


def _peer(name: str, port: int, *arguments: str) -> Component:
    return Component(
        name=name,
        argv=(sys.executable, "-m", "tests.bench.gateway_peers", name, str(port), *arguments),
        env={},
        cwd=REPOSITORY,
        ready=lambda: _listens(port),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="gateway")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name, ExitStack() as stack:
        folder = Path(name)

        def begin(component: Component) -> int:
            process = start(component, folder / f"{component.name}.log")
            stack.callback(stop, component, process)
            return process.pid

        password, ports = secrets.token_hex(16), [free_port() for _ in range(7)]
        database_pid = begin(postgres(folder / "postgres", ports[0], password))
        cache_pid = begin(valkey(folder / "valkey", ports[1], password))
        cache = CacheSettings(cache_url=f"redis://127.0.0.1:{ports[1]}/0", cache_password=password)
        begin(_peer("service", ports[2]))
        variables = environment(
            folder, database_settings(ports[0], password), cache, users_port=ports[2], gateway_port=ports[4]
        )
        variables |= {
            "HEADRACE_SPOOL_DIR": str(folder / "spool"),
            "HEADRACE_LOG_LEVEL": "warn",
            "HEADRACE_AGENTS_URL": f"http://127.0.0.1:{ports[2]}",
        }
        servers = {
            "gateway": (ports[4], begin(service("gateway", ports[4], variables))),
            "nginx": (ports[5], begin(_nginx(folder, ports[5], ports[2]))),
            "fastapi": (ports[6], begin(_peer("fastapi", ports[6], str(ports[2])))),
            "bare": (ports[3], begin(_peer("bare", ports[3], str(ports[2])))),
        }
        measured = {name: Measured() for name in servers}
        for port, _ in servers.values():
            uvloop.run(_load(port, 1.0, options.connections))
        gateway_pid = servers["gateway"][1]
        behind, began = _cpu(database_pid, cache_pid), _cpu(gateway_pid)
        for _ in range(options.rounds):
            for server, (port, pid) in servers.items():
                _measure(measured[server], port, pid, options.seconds, options.connections)
        behind = (_cpu(database_pid, cache_pid) - behind) / (_cpu(gateway_pid) - began)
        memory = psutil.Process(gateway_pid).memory_full_info().pss >> 20
        straight, through = uvloop.run(_streams(ports[2], ports[4], options.rounds))
    per_cpu = {name: statistics.median(one.per_cpu_second) for name, one in measured.items()}
    tail = {name: one.figures()["p99_ms"] for name, one in measured.items()}
    report.write(
        "gateway",
        {
            "requests_per_cpu_second_against_fastapi": per_cpu["gateway"] / per_cpu["fastapi"],
            "requests_per_cpu_second_of_nginx": per_cpu["gateway"] / per_cpu["nginx"],
            "requests_per_cpu_second_against_bare": per_cpu["gateway"] / per_cpu["bare"],
            "p99_against_fastapi": tail["gateway"] / tail["fastapi"],
            "p99_against_nginx": tail["gateway"] / tail["nginx"],
            "servers_cpu_per_gateway_cpu": behind,
        },
        {
            "gateway": {**measured["gateway"].figures(), "pss_mb": memory},
            **{name: one.figures() for name, one in measured.items() if name != "gateway"},
            "first_chunk_overhead_ms": {
                f"p{percent}": round(_ms(through.first, percent) - _ms(straight.first, percent), 2)
                for percent in (50, 95)
            },
            "token_delay_ms": {
                f"{name}_p{percent}": _ms(way.late, percent)
                for name, way in (("straight", straight), ("gateway", through))
                for percent in (50, 95)
            },
            "gap_ms_of_30": {f"p{percent}": _ms(through.gaps, percent) for percent in (5, 50, 95)},
            "connections": options.connections,
        },
    )


if __name__ == "__main__":
    main()
