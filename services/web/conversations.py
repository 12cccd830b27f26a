"""Pages of conversations: the list, one conversation with its live run, and the stream behind it."""

import asyncio
import uuid
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from services.web.api import ApiError, segment
from services.web.live import EventStream
from services.web.pages import page
from services.web.person import Person, see_other
from services.web.routing import behind, cursor, form_of, listed, routes, text_of, wants_json, window

_GOING: Final = {"queued", "running", "waiting"}
_AGENTS: Final = "/api/v1/agents"
_OPEN_RUNS: Final = "32"
"""As many as a conversation may have; they go one after another."""


async def index(person: Person) -> Response:
    found = await person.call("GET", "/api/v1/conversations", params=window(person, 50))
    agents = await person.call("GET", _AGENTS, params=window(person, 100, "agents"))
    ready = [one for one in listed(agents) if one["version"] is not None]
    return page(
        person,
        "conversations.html",
        conversations=listed(found),
        after=behind(found),
        agents=ready,
        agents_after=behind(agents),
        names=await _names(person, listed(found), agents),
    )


async def _names(person: Person, conversations: list[dict[str, Any]], agents: Any) -> dict[str, str]:
    """Names of the agents of these conversations: from the part of their list at hand, the others one by one."""
    names = {one["id"]: one["name"] for one in listed(agents)}
    if not behind(agents) and not cursor(person, "agents"):
        return names  # what is not on the whole list was deleted
    others = {one["agent_id"] for one in conversations} - names.keys()
    return names | dict(await asyncio.gather(*(_named(person, one) for one in others)))


async def _named(person: Person, agent: str) -> tuple[str, str]:
    try:
        found = await person.call("GET", f"{_AGENTS}/{segment(agent)}")
    except ApiError as error:
        if error.status == 401:
            raise
        return agent, ""  # deleted, or not to be had just now: the list is worth more than a name on it
    return agent, str(found["name"])


async def begin(person: Person) -> Response:
    form = await form_of(person)
    words = text_of(form, "text").strip()
    made = await person.call(
        "POST", "/api/v1/conversations", {"agent": text_of(form, "agent"), "title": words[:80]}
    )
    await _say(person, made["id"], words, text_of(form, "message_id"))
    return see_other(f"/conversations/{made['id']}")


async def show(person: Person) -> Response:
    name = segment(person.request.path_params["id"])
    found = await person.call("GET", f"/api/v1/conversations/{name}")
    # A run goes on behind the latest message: under earlier ones its answer would stand in the wrong place.
    is_latest = not cursor(person)
    # Before the messages: the answer of a run that ends meanwhile is among them then.
    live = await _live(person, name) if is_latest else {}
    messages = await person.call(
        "GET", f"/api/v1/conversations/{name}/messages", params={**window(person, 100), "order": "desc"}
    )
    run = live.get("run")
    if run is not None and any(
        one["role"] == "assistant" and one["run_id"] == run["id"] for one in listed(messages)
    ):
        live |= {"run": None, "question": None}
    return page(
        person,
        "conversation.html",
        conversation=found,
        messages=listed(messages)[::-1],
        earlier=behind(messages),
        is_latest=is_latest,
        **live,
    )


async def _live(person: Person, name: str) -> dict[str, Any]:
    """What goes on in a conversation, for the end of its page."""
    runs = listed(
        await person.call(
            "GET", f"/api/v1/conversations/{name}/runs", params={"limit": _OPEN_RUNS, "order": "desc"}
        )
    )
    waiting = next((one for one in runs if one["status"] == "waiting"), None)
    # Later ones stand behind the one that waits for somebody.
    run: dict[str, Any] | None = waiting or (runs[0] if runs else None)
    asked = await person.call("GET", f"/api/v1/runs/{waiting['id']}/approvals") if waiting else {"data": []}
    return {
        "run": run if run is not None and run["status"] in _GOING else None,
        "question": next((one for one in asked["data"] if one["decision"] is None), None),
        "failed": run if run is not None and run["status"] in {"failed", "cancelled"} else None,
        "message_id": f"web-{uuid.uuid4()}",
    }


async def say(person: Person) -> Response:
    form = await form_of(person)
    name = segment(person.request.path_params["id"])
    accepted = await _say(person, name, text_of(form, "text").strip(), text_of(form, "message_id"))
    if wants_json(person.request):
        return JSONResponse({"run": accepted["run"], "next_message_id": f"web-{uuid.uuid4()}"})
    return see_other(f"/conversations/{name}#live")


async def rename(person: Person) -> Response:
    form = await form_of(person)
    name = segment(person.request.path_params["id"])
    await person.call("PATCH", f"/api/v1/conversations/{name}", {"title": text_of(form, "title").strip()})
    return see_other(f"/conversations/{name}")


async def delete(person: Person) -> Response:
    await form_of(person)
    await person.call("DELETE", f"/api/v1/conversations/{segment(person.request.path_params['id'])}")
    return see_other("/conversations")


async def stop(person: Person) -> Response:
    form = await form_of(person)
    await person.call("POST", f"/api/v1/runs/{segment(person.request.path_params['id'])}/cancel")
    if wants_json(person.request):
        return JSONResponse({})
    return see_other(f"/conversations/{segment(text_of(form, 'conversation'))}")


async def resolve(person: Person) -> Response:
    form = await form_of(person)
    run, call = (segment(person.request.path_params[name]) for name in ("id", "call"))
    round_ = text_of(form, "round", "1")
    answer = {
        "decision": text_of(form, "decision"),
        "note": text_of(form, "note").strip(),
        "round": int(round_) if round_.isdecimal() and len(round_) < 4 else 1,
    }
    await person.call("POST", f"/api/v1/runs/{run}/approvals/{call}", answer)
    if wants_json(person.request):
        return JSONResponse({})
    return see_other(f"/conversations/{segment(text_of(form, 'conversation'))}#live")


async def events(person: Person) -> Response:
    """A run's events for an EventSource: begins behind `Last-Event-ID`, else behind `?after=`."""
    after = person.request.headers.get("last-event-id") or person.request.query_params.get("after", "")
    run_id, token = person.request.path_params["id"], await person.token()
    return EventStream(person.api, token, run_id, after if after.isdecimal() else "")


async def _say(person: Person, conversation: str, words: str, message_id: str) -> Any:
    # The same form sent twice, by a second click or a reload, is the same message.
    body = {"text": words, **({"client_msg_id": message_id} if message_id else {})}
    return await person.call("POST", f"/api/v1/conversations/{conversation}/messages", body)


ROUTES: Final = routes(
    [
        ("GET", "/conversations", index),
        ("POST", "/conversations", begin),
        ("GET", "/conversations/{id}", show),
        ("POST", "/conversations/{id}", say),
        ("POST", "/conversations/{id}/title", rename),
        ("POST", "/conversations/{id}/delete", delete),
        ("POST", "/runs/{id}/stop", stop),
        ("POST", "/runs/{id}/approvals/{call}", resolve),
        ("GET", "/runs/{id}/events", events),
    ]
)
