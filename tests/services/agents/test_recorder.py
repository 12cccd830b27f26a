"""What is written when the answer of a commit is lost: once, whatever the database did."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.contracts.run_events import Totals
from core.database import Database
from core.eventlog.api import NewRecord
from core.tasks import cancel
from services.agents import leases
from services.agents.journal import FencedError
from services.agents.model import Outcome
from services.agents.notes import RunJournal
from services.agents.recorder import Recorder
from tests.services.agents.arena import Arena, Asker


class Proxy:
    """Before PostgreSQL: passes everything on; where `cut`, the next commit's answer or its request is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut = ""
        self.cuts = 0
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        address: tuple[str, int] = self._server.sockets[0].getsockname()
        return address[1]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        lost = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65_536):
                if b"COMMIT" in data and self.cut:
                    self.cuts += 1
                    mode, self.cut = self.cut, ""
                    lost.set()
                    if mode == "request":
                        break
                server_writer.write(data)
                await server_writer.drain()

        async def answer() -> None:
            while data := await server_reader.read(65_536):
                if lost.is_set():
                    break
                writer.write(data)
                await writer.drain()

        both = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await cancel(*both)
        for side in (writer, server_writer):
            side.close()


@pytest.fixture
async def proxy(arena: Arena) -> AsyncIterator[Proxy]:
    proxy = Proxy(int(arena.settings.database_url.rpartition(":")[2].partition("/")[0]))
    await proxy.start()
    yield proxy
    await proxy.stop()


@asynccontextmanager
async def claimed(arena: Arena, proxy: Proxy, run: str) -> AsyncIterator[RunJournal]:
    """A journal of the run, whose recorder reaches the database through the proxy."""
    through = arena.settings.model_copy(
        update={"database_url": f"postgresql://127.0.0.1:{proxy.port}/headrace"}
    )
    database = Database(through, role="system")
    recorder = Recorder(database)
    recording = asyncio.create_task(recorder.run())
    async with database.writer() as connection:
        (one,) = await leases.claim(connection, instance="test", lease_seconds=3600, limit=10)
    assert one.identity.run_id == run
    journal = RunJournal(one.identity, seq=one.last_seq, steps=one.steps, place=1, wake=recorder.wake)
    recorder.open(journal)
    try:
        yield journal
    finally:
        recorder.stop()
        await recording
        await database.close()


@pytest.mark.parametrize("cut", ["answer", "request"])
async def test_a_commit_whose_answer_is_lost_happens_once(
    arena: Arena, asker: Asker, proxy: Proxy, cut: str
) -> None:
    run = (await asker.ask("none")).run_id
    async with claimed(arena, proxy, run) as journal:
        for step in range(3):
            journal.note("run.started", {"instance": str(step), "model": ""})
            record = NewRecord("usage.records", b"k", f"{run}:{step}".encode())
            proxy.cut = cut
            await journal.checkpoint("tool", b"x", [record])
        proxy.cut = cut
        await journal.end(Outcome(status="completed", message_id=f"msg_{run}", text="done"))
    assert proxy.cuts == 4
    story = (await asker.stories())[run]
    story.check()
    assert story.types == ["run.queued", *["run.started"] * 3, "run.completed"]
    assert await asker.usage() == [f"{run}:{step}" for step in range(3)]
    assert await asker.answers() == {run: "done"}
    row = (await asker.runs())[run]
    assert (row.status, row.last_seq, row.steps) == ("completed", 5, 3)


async def test_who_lost_the_run_writes_nothing_more(arena: Arena, asker: Asker, proxy: Proxy) -> None:
    run = (await asker.ask("none")).run_id
    async with claimed(arena, proxy, run) as journal:
        await journal.checkpoint("model", b"x")
        await asker.execute("update run set epoch = epoch + 1 where id = :run", run=run)
        journal.emit("message.delta", {"message": "m", "offset": 0, "text": "late"})
        for late in (
            journal.flush,
            lambda: journal.checkpoint("model", b"y"),
            lambda: journal.end(Outcome(status="failed")),
        ):
            with pytest.raises(FencedError):
                await late()
        with pytest.raises(FencedError):
            journal.emit("message.delta", {"message": "m", "offset": 4, "text": "later"})
    assert (await asker.stories())[run].types == ["run.queued"]
    async with asker.system.writer() as connection:
        assert (
            await connection.scalar(text("select count(*) from checkpoint where run_id = :run"), {"run": run})
            == 1
        )
    await asker.execute("update run set status = 'failed' where id = :run", run=run)


async def test_one_runs_refused_write_is_its_own(arena: Arena, asker: Asker, proxy: Proxy) -> None:
    run = (await asker.ask("none")).run_id
    async with claimed(arena, proxy, run) as journal:
        await journal.checkpoint("model", b"x")
        with pytest.raises(ValueError, match=r"not in core\.topology"):
            await journal.checkpoint("model", b"y", [NewRecord("no.topic", b"", b"")])
        with pytest.raises(ValueError, match="not an event"):
            journal.emit("run.completed", {})
        with pytest.raises(ValueError, match="bytes of JSON"):
            journal.emit("tool_result", {"content": "x" * 600_000})
        await journal.checkpoint("model", b"z")
        await journal.end(Outcome(status="failed", error_code="test"))
    row = (await asker.runs())[run]
    assert (row.status, row.steps, row.error_code) == ("failed", 2, "test")
    (await asker.stories())[run].check()


async def test_a_number_that_no_column_holds_is_refused_and_stops_nobody(
    arena: Arena, asker: Asker, proxy: Proxy
) -> None:
    run = (await asker.ask("none")).run_id
    async with claimed(arena, proxy, run) as journal:
        async with asyncio.timeout(20):
            with pytest.raises(DBAPIError):
                await journal.end(Outcome(status="completed", totals=Totals(10**30)))
            await journal.end(Outcome(status="failed", error_code="test"))
    assert (await asker.runs())[run].error_code == "test"


async def test_deltas_of_one_tick_are_one_event(arena: Arena, asker: Asker, proxy: Proxy) -> None:
    run = (await asker.ask("none")).run_id
    async with claimed(arena, proxy, run) as journal:
        await journal.flush()
        for word in range(50):
            journal.emit("message.delta", {"message": "m", "offset": 2 * word, "text": "w "})
        journal.emit("thinking.delta", {"item": "t", "offset": 0, "text": "hm"})
        journal.emit("message.delta", {"message": "m", "offset": 100, "text": "end"})
        await journal.end(Outcome(status="completed", message_id="m", text="x"))
    told = [(one.type, one.data.get("text")) for one in (await asker.stories())[run].events]
    assert told[1:-1] == [("message.delta", "w " * 50), ("thinking.delta", "hm"), ("message.delta", "end")]
