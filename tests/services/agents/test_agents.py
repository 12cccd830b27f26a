"""Agents over HTTP: versions, publication, ETags, slugs, audit."""

import msgspec
import pytest
from sqlalchemy import text

from core.contracts.audit import parse
from core.database import Database
from services.agents.model import AgentSpec
from tests.services.agents.platform import Caller
from tests.services.agents.test_conversations import records


async def test_a_change_is_a_version_that_runs_use_once_it_is_published(acme: Caller) -> None:
    made = await acme.agent(instructions="Be short.", limits={"steps": 3, "cost": "0.25"})
    assert (made["version"], made["latest_version"], made["limits"]["cost"]) == (1, 1, "0.25")
    path = f"/api/v1/agents/{made['id']}"
    read = await acme.call("GET", path)
    changed = await acme.call("PATCH", path, {"instructions": "Be long."}, if_match=read.headers["etag"])
    assert (changed.status, changed.json["version"], changed.json["latest_version"]) == (200, 1, 2)
    assert changed.json["limits"] == made["limits"]
    started = await acme.post(f"{path}/runs", {"input": "steps=1"}, 202)
    assert (await acme.get(f"/api/v1/runs/{started['run_id']}"))["agent_version"] == 1
    published = await acme.call("POST", f"{path}/publish", {"version": 2}, if_match=changed.headers["etag"])
    assert (published.status, published.json["version"]) == (200, 2)
    started = await acme.post("/api/v1/agents/helper/runs", {"input": "steps=1"}, 202)
    assert (await acme.get(f"/api/v1/runs/{started['run_id']}"))["agent_version"] == 2
    versions = await acme.get(f"{path}/versions")
    assert [(one["version"], one["published"], one["spec"]["instructions"]) for one in versions["data"]] == [
        (2, True, "Be long."),
        (1, False, "Be short."),
    ]
    assert (await acme.get(f"{path}/versions/1"))["spec"]["instructions"] == "Be short."
    assert (await acme.call("GET", f"{path}/versions/3")).status == 404
    # A name is no version.
    renamed = await acme.call("PATCH", path, {"name": "Other"}, if_match="*")
    assert (renamed.json["name"], renamed.json["latest_version"]) == ("Other", 2)


async def test_a_field_that_came_later_is_stored_only_where_it_says_something(
    acme: Caller, system: Database
) -> None:
    """An instance of the version before refuses unknown fields: it could read neither the agent nor its runs."""
    for slug, spec, told in (("plain", {}, None), ("limited", {"max_output_tokens": 7}, 7)):
        made = await acme.agent(slug, **spec)
        assert made["max_output_tokens"] == told
        path = f"/api/v1/agents/{made['id']}"
        assert (await acme.get(f"{path}/versions/1"))["spec"]["max_output_tokens"] == told
        run = (await acme.post(f"{path}/runs", {"input": "steps=1"}, 202))["run_id"]
        async with system.writer() as connection:
            stored = await connection.scalars(
                text(
                    "select spec from agent_version where agent_id = :agent"
                    " union all select spec from run where id = :run"
                ),
                {"agent": made["id"], "run": run},
            )
        fields = set(AgentSpec.__struct_fields__) - ({"max_output_tokens"} if told is None else set())
        assert [set(one) for one in stored] == [fields, fields]


async def test_a_change_needs_the_agent_as_it_is(acme: Caller) -> None:
    made = await acme.agent()
    path = f"/api/v1/agents/{made['id']}"
    etag = (await acme.call("GET", path)).headers["etag"]
    assert (await acme.call("PATCH", path, {"name": "A"})).status == 428
    assert (await acme.call("PATCH", path, {"name": "A"}, if_match=etag)).status == 200
    lost = await acme.call("PATCH", path, {"name": "B"}, if_match=etag)
    assert (lost.status, lost.json["code"]) == (412, "changed_meanwhile")
    assert (await acme.call("DELETE", path, if_match=etag)).status == 412
    assert (await acme.get(path))["name"] == "A"


async def test_a_slug_is_one_agents_within_its_organisation(acme: Caller, other: Caller) -> None:
    made = await acme.agent("support")
    taken = await acme.call("POST", "/api/v1/agents", {"slug": "support", "name": "x", "model": "a/b"})
    assert (taken.status, taken.json["code"]) == (409, "slug_taken")
    assert (await other.agent("support"))["id"] != made["id"]
    await acme.agent("sales")
    refused = await acme.call("PATCH", "/api/v1/agents/sales", {"slug": "support"}, if_match="*")
    assert (refused.status, refused.json["code"]) == (409, "slug_taken")
    assert [one["slug"] for one in (await acme.get("/api/v1/agents"))["data"]] == ["sales", "support"]
    assert [one["slug"] for one in (await other.get("/api/v1/agents"))["data"]] == ["support"]


async def test_an_agent_is_made_once_for_a_key(acme: Caller) -> None:
    body = {"slug": "once", "name": "Once", "model": "a/b"}
    answers = [await acme.call("POST", "/api/v1/agents", body, idempotency_key="k") for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].json == answers[1].json
    assert answers[1].headers["idempotent-replayed"] == "true"


async def test_a_draft_answers_nobody(acme: Caller) -> None:
    await acme.agent("draft", publish=False)
    refused = await acme.call("POST", "/api/v1/agents/draft/runs", {"input": "steps=1"})
    assert (refused.status, refused.json["code"]) == (409, "agent_not_published")


async def test_what_is_done_to_agents_is_audited(acme: Caller) -> None:
    made = await acme.agent()
    await acme.call("PATCH", "/api/v1/agents/helper", {"instructions": "x"}, if_match="*")
    await acme.call("POST", "/api/v1/agents/helper/publish", {"version": 2}, if_match="*")
    assert (await acme.call("DELETE", "/api/v1/agents/helper")).status == 204
    assert (await acme.call("GET", "/api/v1/agents/helper")).status == 404
    told = [
        parse(one.encode()) for one in await records(acme.platform, "audit.logs", acme.principal.tenant_id)
    ]
    assert [one.action for one in told] == ["agent.create", "agent.update", "agent.publish", "agent.delete"]
    assert {(one.target, one.actor) for one in told} == {(made["id"], acme.principal.subject)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "no-provider"},
        {"slug": "Not A Slug"},
        {"limits": {"steps": 0}},
        {"temperature": 3},
        {"surprise": 1},
        {"tools": ["x"] * 33},
    ],
)
async def test_what_no_agent_can_be_is_refused(acme: Caller, wrong: dict[str, object]) -> None:
    body = {"slug": "wrong", "name": "Wrong", "model": "a/b", **wrong}
    answer = await acme.call("POST", "/api/v1/agents", body)
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    await acme.agent("right")
    if "surprise" not in wrong:
        change = await acme.call("PATCH", "/api/v1/agents/right", wrong, if_match="*")
        assert change.status == 422, change.json


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/api/v1/agents", "agents:write"),
        ("GET", "/api/v1/agents", "agents:read"),
        ("POST", "/api/v1/agents/helper/runs", "agents:run"),
        ("POST", "/api/v1/conversations", "agents:run"),
    ],
)
async def test_each_needs_its_scope(acme: Caller, method: str, path: str, scope: str) -> None:
    without = msgspec.structs.replace(acme.principal, scopes=acme.principal.scopes - {scope})
    answer = await acme.acting_as(without).call(method, path, {} if method == "POST" else None)
    assert (answer.status, answer.json["code"]) == (403, "missing_scope")
