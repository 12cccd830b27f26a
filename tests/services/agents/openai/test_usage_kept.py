"""What a call of a bare model used is owed, whatever dies before the database has it."""

import asyncio
import json
import resource
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from core.contracts.usage import parse
from core.database import Database
from core.ids import new_id
from services.common.principal import HEADER, Principal, sign
from services.common.spool import Spool, lines_of
from tests.servers import free_port, kill, running, start
from tests.services.agents.openai.conftest import Platform
from tests.services.process import service

ASKED = {"model": "double/words", "messages": [{"role": "user", "content": "Say something"}]}


async def metered(platform: Platform, tenant: str) -> list[tuple[str, str]]:
    """(meter, quantity) of an organisation, wherever its records are on their way, each id once."""
    database = Database(platform.database, role="system")
    try:
        async with database.writer() as connection:
            rows = await connection.execute(
                text(
                    "select value from outbox where topic = 'usage.records' union all select r.value from eventlog.record r"
                    " join eventlog.topic t on t.ref = r.topic_ref where t.name = 'usage.records'"
                )
            )
            found = [parse(bytes(value)) for value in rows.scalars()]
    finally:
        await database.close()
    events = [one for one in found if one.tenant == tenant]
    assert len({one.id for one in events}) == len(events)
    return sorted((one.data.meter, one.data.quantity) for one in events)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_kill_behind_the_answer_loses_no_usage(
    platform: Platform, tmp_path: Path, *, stream: bool
) -> None:
    """Nobody can write into the outbox while the call is answered and its instance is killed."""
    caller = Principal(new_id("org"), new_id("usr"), "user", scopes=frozenset({"agents:run"}))
    variables = {**platform.agents.env, "HEADRACE_USAGE_SPOOL_DIR": str(tmp_path / "spool")}
    instance = service("agents", free_port(), variables)
    key = bytes.fromhex(platform.agents.env["HEADRACE_INTERNAL_KEY"])
    database = Database(platform.database, role="owner")
    process = start(instance, tmp_path / "killed.log")
    try:
        async with (
            aiohttp.ClientSession(headers={HEADER: sign(caller, key)}) as http,
            database.writer() as connection,
        ):
            await connection.execute(text("lock table outbox in access exclusive mode"))
            async with http.post(
                f"{instance.address}/v1/chat/completions", json={**ASKED, "stream": stream}
            ) as answer:
                assert answer.status == 200, await answer.text()
                said = await answer.text()
            kill(process)
        assert "usage" in said or stream
        assert await metered(platform, caller.tenant_id) == []
        heir = service("agents", free_port(), variables)
        with running(heir, tmp_path / "heir.log"):
            async with asyncio.timeout(30):
                while not (found := await metered(platform, caller.tenant_id)):  # noqa: ASYNC110 - another process sends
                    await asyncio.sleep(0.1)
        assert ("llm.requests", "1") in found
        assert {meter for meter, _ in found} == {"llm.requests", "llm.tokens.input", "llm.tokens.output"}
        await asyncio.sleep(1)
        assert await metered(platform, caller.tenant_id) == found, "once"
        if not stream:
            used = json.loads(said)["usage"]
            assert ("llm.tokens.output", str(used["completion_tokens"])) in found
    finally:
        kill(process)
        await database.close()


async def test_a_line_is_on_the_disk_once_it_was_synced(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b'{"tenant":"org_1"}')
    await spool.sync()
    spool.rotate()
    await spool.sync()
    assert [lines_of(path) for path in spool.closed] == [[b'{"tenant":"org_1"}']]
    spool.close()


async def test_a_full_disk_is_told_and_never_answered_as_counted(platform: Platform, tmp_path: Path) -> None:
    """The limit of file sizes stands for the full disk."""
    caller = Principal(new_id("org"), new_id("usr"), "user", scopes=frozenset({"agents:run"}))
    variables = {**platform.agents.env, "HEADRACE_USAGE_SPOOL_DIR": str(tmp_path / "spool")}
    instance = service("agents", free_port(), variables)
    key = bytes.fromhex(platform.agents.env["HEADRACE_INTERNAL_KEY"])
    process = start(instance, tmp_path / "full.log")
    try:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
        async with aiohttp.ClientSession(headers={HEADER: sign(caller, key)}) as http:
            url = f"{instance.address}/v1/chat/completions"
            async with http.post(url, json=ASKED) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "meter_unavailable")
            async with http.post(url, json={**ASKED, "stream": True}) as answer:
                assert answer.status == 200
                assert "meter_unavailable" in (await answer.text()).splitlines()[-2]
    finally:
        kill(process)
