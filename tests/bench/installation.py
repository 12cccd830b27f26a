"""As much of an installation as a slice needs, and what a slice costs on it."""

import asyncio
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg2

from assets.usage import evidence, landing, progress, publish, rollup, schema
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord
from core.eventlog.bulk import read_slice
from core.lake import Lake
from core.settings import EventLogSettings, ObjectSettings
from core.topology import TOPICS
from deploy.servers.postgres import postgres as postgres_server
from quality import gates
from tests.servers import database_settings, free_port, start, stop


@dataclass
class Cost:
    """CPU-seconds of this process (all threads) and of PostgreSQL, by stage."""

    server: psutil.Process
    process: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    postgres: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        # The look at the server first: it is not free, and no part of the stage.
        server, own = server_cpu(self.server), time.process_time()
        yield
        self.process[name] += time.process_time() - own
        self.postgres[name] += server_cpu(self.server) - server

    def of(self, stage: str) -> float:
        return self.process[stage] + self.postgres[stage]

    @property
    def in_process(self) -> float:
        return sum(self.process.values())

    @property
    def total(self) -> float:
        return self.in_process + sum(self.postgres.values())

    def __str__(self) -> str:
        parts = " ".join(f"{name} {value:.3f}" for name, value in self.process.items())
        return f"{self.total:.3f} CPU-s, {self.in_process:.3f} of them here ({parts})"


def server_cpu(process: psutil.Process) -> float:
    """CPU-seconds of a process, its living descendants and those it has reaped."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Installation:
    """PostgreSQL with the event log on it (or another log), a lake and an index, all in `folder`."""

    def __init__(self, folder: Path, eventlog: EventLogSettings | None = None) -> None:
        self._folder, self._port, self._password = folder, free_port(), secrets.token_hex(16)
        self._component = postgres_server(folder / "postgres", self._port, self._password)
        self._log = eventlog or EventLogSettings(eventlog_url="postgresql:")
        self._objects = ObjectSettings(objects_url=f"file://{folder}/objects")

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._process = start(self._component, self._folder / "postgres.log")
        self._server = psutil.Process(self._process.pid)
        self._database = database_settings(self._port, self._password)
        asyncio.run(self._make_topic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._component, self._process)

    def reset(self) -> None:
        """As on the first day."""
        for name in ("objects", "index"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        self._sql(
            "truncate usage_cell, usage_conservation, usage_watermark, usage_publication, usage_quarantine"
        )
        asyncio.run(self._make_topic(anew=True))

    def send(self, records: Sequence[NewRecord]) -> None:
        """Put a slice into the log and drop what has landed, so that the log does not grow."""
        asyncio.run(self._send(records))
        # What the server would otherwise do in the background, at the cost of any slice.
        self._sql("vacuum eventlog.record", "checkpoint")

    def slice(self, most: int) -> tuple[Cost, dict[str, int]]:
        """One slice, from the look of the sensor to published cells: what it cost, and the fates."""
        cost, lake = Cost(self._server), Lake(self._objects)
        with cost.stage("look"):
            piece = progress.next_slice(
                lake, self._log, self._database, schema.TOPIC, schema.EVENTS, most=most
            )
        assert piece is not None
        with cost.stage("land"):
            batches = read_slice(self._log, self._database, piece, headers=False)
            landed = landing.land(lake, self._folder / "index", piece, batches)
        with cost.stage("roll up"):
            rollup.roll_up(lake)
        with cost.stage("gate"):
            found = evidence.evidence(lake, progress.published_slice(self._database) + 1, landed.slice)
            problems = gates.conservation(found.conservation).problems + gates.billed(found.billed)
            problems += gates.contiguous(found.conservation, progress.published_offsets(self._database, lake))
        assert not problems, problems
        with cost.stage("days"):
            rollup.daily(lake)
        with cost.stage("publish"):
            published = publish.publish(lake, self._database)
        assert published is not None
        assert published.slice == landed.slice
        return cost, landed.fates

    async def _make_topic(self, *, anew: bool = False) -> None:
        async with open_eventlog(self._log, self._database) as log:
            if anew:
                await log.delete_topic(schema.TOPIC)
            await log.ensure_topics([TOPICS[schema.TOPIC]])

    async def _send(self, records: Sequence[NewRecord]) -> None:
        async with open_eventlog(self._log, self._database) as log:
            bounds = await log.bounds(schema.TOPIC)
            await log.purge(schema.TOPIC, {partition: bound.high for partition, bound in bounds.items()})
            for first in range(0, len(records), 500):
                await log.append(records[first : first + 500])

    def _sql(self, *statements: str) -> None:
        url = f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/headrace"
        connection = psycopg2.connect(url)
        try:
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)
        finally:
            connection.close()
