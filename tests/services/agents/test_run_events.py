"""A run's events as SSE: from the first to the last, resumed anywhere, on any instance."""

import asyncio

import httpx2
import msgspec
from fastapi import APIRouter

from core.contracts.agents import TERMINAL
from core.database import tenant
from core.eventlog import open_eventlog
from core.settings import EventLogSettings
from core.tasks import cancel
from services.agents import store
from services.agents.store import Viewer
from services.agents.streams import events_of
from services.common.app import service_app
from services.common.events import AgentEvents
from services.common.lifecycle import Lifecycle
from tests.servers import free_port
from tests.services.agents.arena import Asker
from tests.services.agents.platform import Caller, Sse
from tests.services.agents.scripted import answer_to


def told(events: list[Sse]) -> str:
    """The text of the deltas."""
    decoded = [msgspec.json.decode(one.data) for one in events]
    assert [(one["seq"], one["type"]) for one in decoded] == [(one.id, one.event) for one in events]
    return "".join(one["data"]["text"] for one in decoded if one["type"] == "message.delta")


async def started(caller: Caller, script: str) -> str:
    await caller.agent()
    run = await caller.post("/api/v1/agents/helper/runs", {"input": script}, 202)
    return f"/api/v1/runs/{run['run_id']}"


async def test_a_stream_tells_everything_and_ends(acme: Caller) -> None:
    path = await started(acme, "steps=5 words=6 pause=0.01")
    live, elsewhere = await asyncio.gather(acme.events(f"{path}/events"), acme.at(1).events(f"{path}/events"))
    assert live == elsewhere
    assert [one.id for one in live] == list(range(1, len(live) + 1))
    assert [one.event for one in live if one.event in TERMINAL] == [live[-1].event]
    assert (live[0].event, live[1].event) == ("run.queued", "run.started")
    assert told(live) == answer_to({"steps": "5", "words": "6"})
    # And again when all is over.
    assert await acme.events(f"{path}/events") == live


async def test_a_stream_is_resumed_on_another_instance(acme: Caller) -> None:
    path = await started(acme, "steps=6 words=6 pause=0.01")
    found: list[Sse] = []
    for number in range(1000):
        last = {"last_event_id": str(found[-1].id)} if found else {}
        found += await acme.at(number % 2).events(f"{path}/events", 4, **last)
        if found[-1].event in TERMINAL:
            break
    assert [one.id for one in found] == list(range(1, len(found) + 1))
    assert told(found) == answer_to({"steps": "6", "words": "6"})
    tail = await acme.events(f"{path}/events?after_seq={len(found) - 2}")
    assert tail == found[-2:]
    over = await acme.call("GET", f"{path}/events", last_event_id=str(len(found)))
    assert over.status == 204


async def test_a_silent_stream_says_that_it_is_alive(acme: Caller) -> None:
    path = await started(acme, "steps=1 words=2 pause=1")
    sent = acme.platform.header(acme.principal)
    async with acme.http.get(acme.platform.addresses[0] + f"{path}/events", headers=sent) as answer:
        assert (await answer.read()).count(b"\n: alive\n\n") >= 2


async def test_a_position_that_is_no_number_is_refused(acme: Caller) -> None:
    path = await started(acme, "steps=1")
    for wrong in ("x", "-1", "1.5", "9" * 30):
        assert (await acme.call("GET", f"{path}/events", last_event_id=wrong)).status == 422
    assert (await acme.call("GET", f"{path}/events?after_seq=-1")).status == 422


async def test_while_the_event_log_is_away_the_answer_says_when_to_come_back(asker: Asker) -> None:
    asked = await asker.ask("anything")
    with tenant(asker.tenant_id):
        async with asker.app.writer() as connection:
            run = await store.run(connection, Viewer.of(asker.principal), asked.run_id)
    assert run is not None
    await asker.cancel(asked.run_id)
    nowhere = EventLogSettings(eventlog_url=f"kafka://127.0.0.1:{free_port()}")
    router = APIRouter()
    async with open_eventlog(nowhere, asker.settings) as log:
        events = AgentEvents(log)
        following = asyncio.create_task(events.run())
        router.add_api_route(
            "/events", lambda: events_of(run, events, 0, asyncio.Event(), 15), response_model=None
        )
        app = service_app("agents", Lifecycle(), routers=[router])
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://agents"
        ) as client:
            answer = await client.get("/events", timeout=60)
        await cancel(following)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_metrics_tell_how_runs_went_and_what_waits(acme: Caller) -> None:
    path = await started(acme, "end=raise")
    assert (await acme.events(f"{path}/events"))[-1].event == "run.failed"
    shown, wanted = "", 'agent_run_duration_seconds_bucket{le="30.0",outcome="failed"}'
    async with asyncio.timeout(60):
        while wanted not in shown:  # the event may be read before its run is counted
            shown = ""
            for instance in (0, 1):
                async with acme.http.get(f"{acme.platform.addresses[instance]}/metrics") as answer:
                    shown += await answer.text()
    for name in ("agent_runs_in_flight", "agent_runs_queued", 'consumer_lag_records{group="agents"'):
        assert name in shown
