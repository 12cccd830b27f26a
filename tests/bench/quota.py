"""From an event to the live quota that knows it, on a whole running installation under load.

    make bench NAME=quota [ARGS="--rates 1000 5000 --seconds 20 --profile embedded"]

Batches of 100 events go to `POST /api/v1/usage/events` through the gateway at times that were fixed before (an
open loop): a slow answer delays nothing that comes after it, and what is refused is counted and not sent again.
Beside them another organisation sends one event each tenth of a second, and asks for its live usage all the time.
A delay runs from the moment at which an event was to be sent to the answer of `GET /api/v1/usage` that has it in
its sum; so the waiting of a busy sender is in it, and the pause between two questions as well. An event that was
refused for good or never seen counts as late as the bench waited for it.

Delays and rates are by the clock, so they are of this machine and of what else it does (its load is printed).
CPU-seconds by component for a thousand events are not.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from core.clock import now, rfc3339
from deploy.installation import load
from deploy.session import operator
from deploy.supervisor.run_folder import RunFolder
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import free_base

AIM_SECONDS = 1.0
BATCH = 100
SENDERS = 2
"""Organisations that the load comes from: one has at most half of the batches at hand."""
PROBES_A_SECOND = 10
PAUSE = 0.02
"""Seconds between two questions."""
PATIENCE = 20.0
"""Seconds that are waited for events after the last was sent."""
WARM_UP = 3.0


class Platform:
    """An installation of its own, started and ended by the command."""

    def __init__(self, folder: Path, profile: str) -> None:
        self._data, self._profile = folder / "data", profile

    def up(self) -> None:
        self._headrace("up", "--detach", "--profile", self._profile, "--port-base", str(free_base()))
        installation = load(self._data)
        self.gateway = installation.environment["HEADRACE_GATEWAY_URL"]
        self._operator = operator(installation)

    def down(self) -> None:
        """Also where starting it was given up half-way."""
        if self._data.exists():
            self._headrace("down")

    def tenant(self, name: str) -> tuple[str, str]:
        """Its id and a key."""
        return self._operator.ensure_tenant(name), self._operator.tenant_key(name)

    def cpu(self) -> dict[str, float]:
        """CPU-seconds of each component so far."""
        state = RunFolder(self._data).state()
        assert state is not None
        return {row["name"]: server_cpu(psutil.Process(row["pid"])) for row in state["components"] if row["pid"]}  # fmt: skip

    def _headrace(self, command: str, *words: str) -> None:
        full = [sys.executable, "-m", "deploy.cli.main", command, *words, "--data", str(self._data)]
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"headrace {command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class Load:
    """What one run of the load did."""

    def __init__(self, session: aiohttp.ClientSession, platform: Platform, rate: int, seconds: float) -> None:
        self._session, self._url = session, f"{platform.gateway}/api/v1/usage"
        self._rate, self._seconds = rate, seconds
        self._senders = [platform.tenant(f"bench-{number}") for number in range(SENDERS)]
        self._probe = platform.tenant(f"bench-probe-{rate}")
        self._run = time.time_ns()
        self.offered = self.accepted = 0
        self._known = -1
        self.refusals: dict[str, int] = defaultdict(int)
        self.late: list[float] = []
        """Seconds by which the bench itself sent a batch too late."""
        self.delays: list[float] = []
        self.missing = 0

    async def run(self) -> None:
        bodies = [self._body(number) for number in range(round(self._rate * self._seconds / BATCH))]
        for _ in range(100):
            self._before = await self._seen()
            if self._before >= 0:
                break
            await asyncio.sleep(PAUSE)
        else:
            raise SystemExit(f"the platform does not answer: {dict(self.refusals)}")
        begin = time.monotonic() + 0.5
        sending = asyncio.gather(
            *(self._send(begin + n * BATCH / self._rate, *body) for n, body in enumerate(bodies))
        )
        probes = round(self._seconds * PROBES_A_SECOND)
        times = [begin + number / PROBES_A_SECOND for number in range(probes)]
        probing = asyncio.gather(*(self._send_probe(at, n) for n, at in enumerate(times)))
        await self._watch(times)
        await asyncio.gather(sending, probing)
        self.missing = probes - len(self.delays)
        self.delays += [PATIENCE] * self.missing

    async def _watch(self, times: Sequence[float]) -> None:
        """Ask until all have been seen. The n-th to be seen is held against the n-th that was sent."""
        until = times[-1] + PATIENCE
        while len(self.delays) < len(times) and time.monotonic() < until:
            seen = await self._seen() - self._before
            at = time.monotonic()
            self.delays += [at - times[number] for number in range(len(self.delays), min(seen, len(times)))]
            await asyncio.sleep(PAUSE)

    async def _seen(self) -> int:
        """The probes in the live sum; as many as the last time where there is no answer, -1 before the first."""
        try:
            async with self._session.get(self._url, headers=_bearer(self._probe[1])) as answer:
                if answer.status == 200:
                    self._known = int((await answer.json())["quantities"].get("llm.tokens.output", "0"))
                else:
                    self.refusals[f"question {answer.status}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.refusals[f"question {type(error).__name__}"] += 1
        return self._known

    async def _send_probe(self, at: float, number: int) -> None:
        """One that is refused for crowding comes again, and its delay goes on."""
        await _sleep_until(at)
        body = f"[{_event(self._probe[0], f'probe-{self._run}-{number}')}]".encode()
        while time.monotonic() < at + PATIENCE:
            if await self._post(body, self._probe[1], "probe ", 1):
                return
            await asyncio.sleep(0.1)

    async def _send(self, at: float, body: bytes, key: str) -> None:
        await _sleep_until(at)
        self.late.append(time.monotonic() - at)
        self.offered += BATCH
        taken = await self._post(body, key, "", BATCH)
        self.accepted += taken

    async def _post(self, body: bytes, key: str, kind: str, events: int) -> int:
        """How many of these events were accepted."""
        try:
            async with self._session.post(f"{self._url}/events", data=body, headers=_bearer(key)) as answer:
                if answer.status == 200:
                    return int((await answer.json())["accepted"])
                self.refusals[f"{kind}{answer.status}"] += events
        except (aiohttp.ClientError, TimeoutError) as error:
            self.refusals[f"{kind}{type(error).__name__}"] += events
        return 0

    def _body(self, number: int) -> tuple[bytes, str]:
        tenant, key = self._senders[number % SENDERS]
        events = (_event(tenant, f"load-{self._run}-{number}-{each}") for each in range(BATCH))
        return f"[{','.join(events)}]".encode(), key


def _event(tenant: str, name: str) -> str:
    return (
        f'{{"specversion":"1.0","type":"headrace.usage.v1","id":"{name}","source":"bench/quota","time":"{rfc3339(now())}",'
        f'"tenant":"{tenant}","subject":"cus_1","data":{{"meter":"llm.tokens.output","quantity":"1",'
        '"dimensions":{"provider":"p1","model":"model-1"}}}'
    )


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


async def measure(platform: Platform, rate: int, seconds: float) -> tuple[float, float, dict[str, Any]]:
    """Seconds to the live quota (p99), the share that was accepted, and the figures."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        done, before = Load(session, platform, rate, seconds), platform.cpu()
        await done.run()
        after = platform.cpu()
    used = {name: after[name] - value for name, value in before.items() if name in after}
    thousands = max(done.accepted, 1) / 1000
    figures = {
        "events_a_second_accepted": round(done.accepted / seconds),
        "events_offered": done.offered,
        "events_accepted": done.accepted,
        "refused_or_failed": dict(done.refusals),
        "probes": len(done.delays),
        "probes_never_seen": done.missing,
        **{f"p{percent}_seconds": round(percentile(done.delays, percent), 3) for percent in (50, 90, 99, 100)},
        "sent_too_late_by_the_bench_p99_seconds": round(percentile(done.late, 99), 3),
        "cpu_seconds_for_1000_events": {
            part: round(value / thousands, 4) for part, value in sorted(used.items()) if value / thousands >= 1e-3
        },
        "load_of_the_machine": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(f"{rate} events a second: {figures}", flush=True)
    return percentile(done.delays, 99), done.accepted / max(done.offered, 1), figures


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the platform must not outlive the bench
    arguments = argparse.ArgumentParser(
        description="From an event to the live quota that knows it, under load."
    )
    arguments.add_argument("--profile", default="embedded", choices=("embedded", "stack"))
    arguments.add_argument(
        "--rates", type=int, nargs="+", default=[1_000, 5_000], help="events a second, rising"
    )
    arguments.add_argument("--seconds", type=float, default=20, help="of load at each rate, at most 60")
    options = arguments.parse_args()
    if not (0 < options.seconds <= 60 and min(options.rates) >= BATCH):
        arguments.error(f"--seconds must be at most 60, --rates at least {BATCH}")
    figures: dict[str, Any] = {"profile": options.profile, "events_in_a_batch": BATCH}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        platform = Platform(Path(name), options.profile)
        try:
            platform.up()
            asyncio.run(measure(platform, BATCH, WARM_UP))
            for rate in options.rates:
                p99, accepted, found = asyncio.run(measure(platform, rate, options.seconds))
                figures[f"at_{rate}_events_a_second"] = found
        finally:
            platform.down()
    report.write(
        "quota" if options.profile == "embedded" else f"quota-{options.profile}",
        {
            f"p99_to_live_quota_at_{rate}_of_aim": p99 / AIM_SECONDS,
            f"accepted_of_offered_at_{rate}": accepted,
        },
        figures,
    )


if __name__ == "__main__":
    main()
