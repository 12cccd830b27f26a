"""A PostgreSQL where nobody else takes runs, and what tests of runs do with it."""

import asyncio
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from core.contracts.agents import TERMINAL, AgentEvent, event
from core.contracts.run_events import Decision
from core.database import Database, tenant
from core.ids import new_id
from core.settings import DatabaseSettings
from core.tasks import cancel
from deploy.component import Component
from services.agents import decisions, store, submissions
from services.agents.decisions import Approval
from services.agents.model import AgentSpec, Limits
from services.agents.runner import Execute, Runner
from services.agents.store import Viewer
from services.agents.submissions import Submission, Submitted
from services.common.principal import Principal
from tests.messages import check
from tests.servers import kill, start, stop
from tests.services.process import REPOSITORY

ASKER = "usr_asker"


@dataclass(frozen=True)
class Arena:
    """Servers of one module of tests; `folder` is for its files."""

    settings: DatabaseSettings
    folder: Path

    @contextmanager
    def runner(
        self, name: str, *, capacity: int = 24, lease: float = 1.5
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A runner in a process of its own, ended with the block."""
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        arguments = (name, str(capacity), str(lease), str(ready))
        component = Component(
            name=name,
            argv=(sys.executable, "-W", "error", "-m", "tests.services.agents.runner_process", *arguments),
            env={**variables(self.settings), "PATH": os.environ.get("PATH", "")},
            cwd=REPOSITORY,
            ready=ready.exists,
            stop_grace=15,
        )
        process = start(component, self.log(name))
        try:
            yield process
        except BaseException:
            kill(process)
            raise
        stop(component, process)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@dataclass(frozen=True)
class Story:
    """What the events of a run tell, as a reader puts it together."""

    events: list[AgentEvent]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def takeovers(self) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == "run.takeover"]

    @property
    def text(self) -> str:
        """The answer put together from deltas; what a takeover discards is dropped."""
        parts: list[tuple[int, str]] = []
        for one in self.events:
            if one.type == "run.takeover":
                parts = [part for part in parts if part[0] <= one.data["discard_after_seq"]]
            elif one.type == "message.delta":
                assert one.data["offset"] == sum(len(said) for _, said in parts)
                parts.append((one.seq, one.data["text"]))
        return "".join(said for _, said in parts)

    def check(self) -> None:
        """Dense from 1, epochs never fall, exactly one terminal event and nothing behind it."""
        assert [one.seq for one in self.events] == list(range(1, len(self.events) + 1))
        assert [one.epoch for one in self.events] == sorted(one.epoch for one in self.events)
        assert self.types[0] == "run.queued"
        assert [one.type for one in self.events if one.type in TERMINAL] == [self.types[-1]]


@asynccontextmanager
async def in_process(arena: Arena, loop: Execute, **options: Any) -> AsyncIterator[Runner]:
    """A runner in this process, drained with the block."""
    database = Database(arena.settings, role="system")
    runner = Runner(database, loop, instance="here", poll_seconds=0.1, **options)
    running = asyncio.create_task(runner.run())
    try:
        yield runner
        runner.drain()
        await running
    finally:
        await cancel(running)
        await database.close()


class Asker:
    """One organisation and a person of it who asks."""

    def __init__(self, settings: DatabaseSettings, tenant_id: str) -> None:
        self.settings = settings
        self.app, self.system = Database(settings, role="app"), Database(settings, role="system")
        self.tenant_id = tenant_id

    @classmethod
    async def of(cls, settings: DatabaseSettings) -> "Asker":
        asker = cls(settings, new_id("org"))
        await asker.execute(
            "insert into organisation (id, slug, name, plan) values (:id, :slug, 'Test', 'free')",
            id=asker.tenant_id,
            slug=asker.tenant_id.replace("_", "-"),
        )
        return asker

    async def close(self) -> None:
        await self.app.close()
        await self.system.close()

    @property
    def principal(self) -> Principal:
        return Principal(tenant_id=self.tenant_id, subject=ASKER, kind="user")

    async def ask(
        self,
        script: str,
        *,
        seconds: int = 60,
        model: str = "test/scripted",
        instructions: str = "",
        **more: Any,
    ) -> Submitted:
        spec = AgentSpec(model=model, instructions=instructions, limits=Limits(seconds=seconds))
        wanted = Submission(spec=spec, text=script, agent_id="agt_test", agent_version=1, **more)
        with tenant(self.tenant_id):
            async with self.app.writer() as connection:
                return await submissions.submit(connection, self.principal, wanted)

    async def cancel(self, run_id: str) -> None:
        with tenant(self.tenant_id):
            async with self.app.writer() as connection:
                await submissions.cancel(connection, self.principal, run_id)

    async def waits(self, run_id: str) -> Approval | None:
        """What the run asks a person, if it waits for one."""
        with tenant(self.tenant_id):
            async with self.app.writer() as connection:
                found = await store.run(connection, Viewer.of(self.principal), run_id)
                assert found is not None
                return await decisions.open_of(connection, run_id) if found.status == "waiting" else None

    async def decide(self, asked: Approval, decision: Decision, note: str = "") -> Approval:
        """Raises: Problem."""
        with tenant(self.tenant_id):
            async with self.app.writer() as connection:
                found = await store.run(connection, Viewer.of(self.principal), asked.run_id, lock=True)
                assert found is not None
                return await decisions.decide(
                    connection, found, asked.call, asked.round, decision=decision, by=ASKER, note=note
                )

    async def rows(self, sql: str, **parameters: object) -> list[Any]:
        async with self.system.writer() as connection:
            return list(await connection.execute(text(sql), parameters))

    async def execute(self, sql: str, **parameters: object) -> None:
        async with self.system.writer() as connection:
            await connection.execute(text(sql), parameters)

    async def runs(self) -> Mapping[str, Any]:
        """All rows of `run` of this organisation, by id."""
        return {
            row.id: row for row in await self.rows("select * from run where tenant_id = :t", t=self.tenant_id)
        }

    async def stories(self) -> dict[str, Story]:
        """From the outbox, which no relay empties here."""
        found: dict[str, list[AgentEvent]] = defaultdict(list)
        for row in await self.rows(
            "select value, key from outbox where tenant_id = :t and topic = 'agent.events' order by id",
            t=self.tenant_id,
        ):
            check("agent.events", bytes(row.value))
            one = event(bytes(row.value))
            assert bytes(row.key) == one.conversation.encode()
            found[one.subject].append(one)
        return {run: Story(events) for run, events in found.items()}

    async def usage(self) -> list[str]:
        """What was metered, sorted."""
        rows = await self.rows(
            "select value from outbox where tenant_id = :t and topic = 'usage.records'", t=self.tenant_id
        )
        return sorted(bytes(row.value).decode() for row in rows)

    async def answers(self) -> dict[str, str]:
        """The stored answer of each run."""
        rows = await self.rows(
            "select run_id, text from message where tenant_id = :t and role = 'assistant'", t=self.tenant_id
        )
        assert len(rows) == len({row.run_id for row in rows})
        return {row.run_id: row.text for row in rows}


def variables(settings: DatabaseSettings) -> dict[str, str]:
    """Where the database is, as a process reads it."""
    return {
        f"HEADRACE_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings.model_dump().items()
        if value is not None
    }
