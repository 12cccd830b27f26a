"""The drill of conversations: two instances of everything, one of each killed and one drained under load."""

import asyncio
import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from core.contracts import agents as contract
from core.eventlog import open_eventlog
from core.settings import DatabaseSettings, EventLogSettings
from deploy.drill.clients import WORD_MS, Anywhere, Clients, Load
from deploy.drill.platform import DrillError, Platform
from deploy.installation import load
from deploy.session import operator, settings_of

TENANT: Final = "drill-runs"
REPLICATED: Final = ("agents", "ws", "gateway")
AT_ONCE: Final = 32
"""Conversations that go on side by side."""
RUNS_A_ROUND: Final = 200
"""Runs in which one instance of each is killed and the other drained."""
Say = Callable[[str], None]


def drill(
    folder: Path, profile: str, port_base: int, runs: int, watchers: int, seed: int, say: Say
) -> dict[str, Any]:
    """Two agents, two ws, two gateways; `runs` runs while one of each is killed and the other drained.

    Args:
        watchers: clients that follow each run, over connections that are cut every 1 to 3 s.

    Raises:
        DrillError: a run has not exactly one terminal event, a text is wrong, or a message is doubled.
    """
    replicas = tuple(f"{name}=2" for name in REPLICATED)
    pace = {"HEADRACE_EXTRACTIVE_WORD_MS": str(WORD_MS)}
    with Platform(folder / "runs", profile, port_base, replicas, pace) as platform:
        return asyncio.run(_drill(platform, runs, watchers, random.Random(seed), say))  # noqa: S311 - repeatable


async def _drill(
    platform: Platform, runs: int, watchers: int, source: random.Random, say: Say
) -> dict[str, Any]:
    installation = load(platform.data)
    owner = operator(installation)
    key = owner.tenant_key(TENANT)
    gateways, sockets = (_addresses(platform, name) for name in ("gateway", "ws"))
    load_ = Load()
    anywhere = Anywhere(gateways, key, load_)
    agent = await anywhere.post(
        "/api/v1/agents",
        {"slug": "drill", "name": "Drill", "model": "local/local-extractive", "tools": ["calculator"]},
    )
    storm = Storm(platform, load_, runs, say)
    began = time.monotonic()
    storm.start()
    try:
        await Clients(anywhere, sockets, agent["id"], watchers, source, load_).talk(AT_ONCE, runs)
    finally:
        storm.over.set()
        await asyncio.to_thread(storm.join)
        await anywhere.close()
    seconds = time.monotonic() - began
    if storm.error is not None:
        raise DrillError(f"the storm broke off: {storm.error}") from storm.error
    await asyncio.to_thread(platform.wait_ready)
    log = await _from_log(
        settings_of(installation, EventLogSettings), settings_of(installation, DatabaseSettings), load_
    )
    problems = _problems(load_, log) + _doubled(owner.gateway_url, key, load_)
    if len(storm.done) < len(storm.plan):
        problems.append(f"only {len(storm.done)} of {len(storm.plan)} instances were ended under load")
    report = {
        "runs": len(load_.runs),
        "texts": len(load_.texts),
        "seconds": round(seconds, 1),
        "takeovers": sum(event.type == "run.takeover" for events in log.values() for event in events),
        "cuts": sum(followed.cuts for followed in load_.texts),
        "refusals": sum(followed.refusals for followed in load_.texts),
        "repeated_requests": load_.retries,
        "outcomes": dict(Counter(followed[0].ended for followed in load_.runs.values())),
        "storm": storm.done,
        "problems": problems,
    }
    if problems:
        raise DrillError(f"{len(problems)} problems: {'; '.join(problems[:10])}")
    return report


@dataclass(frozen=True, slots=True)
class Blow:
    """An instance and how it ends."""

    target: str
    how: signal.Signals
    after_runs: int


def plan(runs: int) -> list[Blow]:
    """In each round one instance of every service is killed, then the other drained; in the next the other
    way round. Nothing happens in the last eighth, so that what was ended has runs to come back to."""
    rounds = max(1, runs // RUNS_A_ROUND)

    def targets() -> Iterator[tuple[str, signal.Signals]]:
        for number in range(rounds):
            killed, drained = ("-2", "") if number % 2 == 0 else ("", "-2")
            for suffix, how in ((killed, signal.SIGKILL), (drained, signal.SIGTERM)):
                yield from ((f"{name}{suffix}", how) for name in REPLICATED)

    blows = list(targets())
    return [
        Blow(target, how, (runs * 7 * number) // (8 * (len(blows) + 1)))
        for number, (target, how) in enumerate(blows, 1)
    ]


class Storm(threading.Thread):
    """Carries out the plan while runs end."""

    def __init__(self, platform: Platform, load: Load, runs: int, say: Say) -> None:
        super().__init__(daemon=True)
        self._platform, self._load, self._runs, self._say = platform, load, runs, say
        self.plan = plan(runs)
        self.done: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.over = threading.Event()
        """The clients have ended: what comes now would not come under load."""

    def run(self) -> None:
        try:
            for blow in self.plan:
                while len(self._load.runs) < blow.after_runs:
                    if self.over.wait(0.05):
                        return
                pid = self._platform.pid(blow.target)
                if self.over.is_set():
                    return
                os.kill(pid, blow.how)
                ended = len(self._load.runs)
                self.done.append(
                    {"target": blow.target, "signal": blow.how.name, "pid": pid, "after_runs": ended}
                )
                self._say(f"{blow.how.name} to {blow.target} after {ended} of {self._runs} runs")
        except BaseException as error:  # raised again by whoever joins this thread
            self.error = error


def _addresses(platform: Platform, name: str) -> list[str]:
    return [str(entry["address"]) for entry in platform.status() if entry["name"] in {name, f"{name}-2"}]


async def _from_log(
    eventlog: EventLogSettings, database: DatabaseSettings, load: Load
) -> dict[str, list[contract.AgentEvent]]:
    """Every event of the drill's runs as it stands in `agent.events`, without the relay's repetitions."""
    events: dict[str, dict[int, contract.AgentEvent]] = {run: {} for run in load.runs}
    async with open_eventlog(eventlog, database) as log:
        for partition, bounds in (await log.bounds(contract.EVENTS)).items():
            async for batch in log.read(contract.EVENTS, partition, bounds.low, bounds.high):
                for record in batch:
                    event = contract.event(record.value)
                    if event.subject in events:
                        known = events[event.subject].setdefault(event.seq, event)
                        if known.id != event.id:
                            raise DrillError(f"{event.subject} has two events {event.seq}")
    return {run: [found[seq] for seq in sorted(found)] for run, found in events.items()}


def _problems(load: Load, log: dict[str, list[contract.AgentEvent]]) -> list[str]:
    problems = []
    for run, clients in load.runs.items():
        events = log[run]
        terminal = [event for event in events if event.type in contract.TERMINAL]
        if len(terminal) != 1 or events[-1] is not terminal[0]:
            problems.append(f"{run}: terminal events {[event.type for event in terminal]}")
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            problems.append(f"{run}: its numbers have gaps")
        for followed in clients:
            if followed.ended != "run.completed" or followed.completed is None:
                problems.append(f"{run}: ended with {followed.ended}")
            elif hashlib.sha256(followed.text.encode()).hexdigest() != followed.completed["sha256"]:
                problems.append(f"{run}: the client's text is not the event's")
            problems += [f"{run}: {each}" for each in followed.missing]
    return problems


def _doubled(gateway: str, key: str, load: Load) -> list[str]:
    """Conversations that do not hold one question and one answer for each message sent."""
    problems = []
    with httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=20.0) as http:
        for conversation, sent in load.conversations.items():
            messages, after = 0, ""
            while True:
                path = f"{gateway}/api/v1/conversations/{conversation}/messages"
                page = http.get(path, params={"limit": "100", **({"after": after} if after else {})}).json()
                messages += len(page["data"])
                if not page["has_more"]:
                    break
                after = page["last_id"]
            if messages != 2 * sent:
                problems.append(f"{conversation}: {messages} messages, {sent} were sent")
    return problems
