"""The API as one document, from services that describe themselves."""

import asyncio
import json
import re

import aiohttp
import pytest

from services.common.lifecycle import FRESH_SECONDS
from services.gateway.app import network
from services.gateway.reference import merge
from services.gateway.routes import ROUTES, AmbiguousPathError, Route, RouteTable
from tests.services.gateway.conftest import Running
from tests.services.gateway.upstream import Upstream


async def test_one_document_for_all_published_paths(platform: Running, http: aiohttp.ClientSession) -> None:
    async with http.get(platform.address + "/openapi.json") as answer:
        text = await answer.text()
    document = json.loads(text)
    assert {"/api/v1/auth/login", "/api/v1/usage/events", "/api/v1/organizations/{id}/keys"} <= document[
        "paths"
    ].keys()
    assert not [path for path in document["paths"] if path.startswith("/internal")]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= document["components"]["schemas"].keys()
    async with http.get(platform.address + "/docs") as answer:
        assert "/api/v1/usage/events" in await answer.text()


async def test_every_row_of_the_table_is_served(platform: Running, http: aiohttp.ClientSession) -> None:
    async with http.get(platform.address + "/openapi.json") as answer:
        paths = list((await answer.json())["paths"])
    for row in (row for row in ROUTES if row.service in {"users", "billing"}):  # those that run here
        assert [path for path in paths if path == row.prefix or path.startswith(row.prefix + "/")], row.prefix


async def test_a_service_that_is_away_is_named(
    behind: dict[str, str], gateway: Running, http: aiohttp.ClientSession
) -> None:
    """Only users runs here."""
    async with http.get(gateway.address + "/openapi.json") as answer:
        document = await answer.json()
    assert document["info"]["description"] == "Not answering now: billing, agents, memory, ws, relay."
    assert "/api/v1/me" in document["paths"]
    async with http.get(gateway.address + "/readyz") as answer:
        assert answer.status == 200
        ready = await answer.json()
    assert ready["status"] == "degraded"
    assert (ready["checks"]["users"], ready["checks"]["spool"]) == ("ok", "ok")
    assert ready["checks"]["billing"] != "ok"


async def test_readiness_is_asked_once_for_all(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession
) -> None:
    await asyncio.sleep(FRESH_SECONDS)

    async def billing() -> str:
        async with http.get(gateway.address + "/readyz") as answer:
            said: str = (await answer.json())["checks"]["billing"]
            return said

    assert set(await asyncio.gather(*(billing() for _ in range(30)))) == {"ok"}
    assert len([one for one in upstream.requests if one.target == "/healthz"]) == 1
    await asyncio.sleep(FRESH_SECONDS)
    await billing()
    assert len([one for one in upstream.requests if one.target == "/healthz"]) == 2


def _document(path: str, schema: dict[str, object]) -> dict[str, object]:
    answer = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}}
    return {
        "paths": {path: {"get": {"responses": {"200": answer}}, "post": {}}},
        "components": {"schemas": {"Thing": schema}},
    }


def test_schemas_that_clash_are_told_apart() -> None:
    table = RouteTable([Route("/a", "users", ("GET",)), Route("/b", "billing", ("GET",))])
    merged = merge(
        {"users": _document("/a", {"type": "string"}), "billing": _document("/b", {"type": "integer"})}, table
    )
    schemas = merged["components"]["schemas"]
    assert (schemas["Thing"], schemas["billing.Thing"]) == ({"type": "string"}, {"type": "integer"})
    assert "billing.Thing" in json.dumps(merged["paths"]["/b"])
    assert "billing" not in json.dumps(merged["paths"]["/a"])
    assert list(merged["paths"]["/a"]) == ["get"]
    same = merge({"users": _document("/a", {}), "billing": _document("/b", {})}, table)
    assert set(same["components"]["schemas"]) == {"Problem", "Thing"}
    swapped = merge({"users": _document("/b", {}), "billing": _document("/b", {})}, table)
    assert list(swapped["paths"]) == ["/b"]


def test_the_longest_prefix_wins() -> None:
    table = RouteTable([Route("/a", "users"), Route("/a/b", "billing"), Route("/a/bc", "users")])
    found = {path: table.find(path) for path in (b"/a", b"/a/x", b"/a/b", b"/a/b/c", b"/a/bc", b"/ab", b"/")}
    assert {path: row.prefix if row else None for path, row in found.items()} == {
        b"/a": "/a", b"/a/x": "/a", b"/a/b": "/a/b", b"/a/b/c": "/a/b", b"/a/bc": "/a/bc", b"/ab": None, b"/": None,
    }  # fmt: skip
    for path in (b"/a/..", b"/a/../b", b"/a/.", b"/./a", b"/a%2fb", b"/a\\b", b"/a%0A"):
        with pytest.raises(AmbiguousPathError):
            table.find(path)
    assert table.find(b"/a/...") is not None
    assert table.find(b"/a/.hidden") is not None


@pytest.mark.parametrize(
    ("path", "uses"),
    [
        (b"/api/v1/agents/helper/runs", True),
        (b"/api/v1/agents/helper/%72un%73", True),
        (b"/api/v1/conversations/cnv_1/messages", True),
        (b"/api/v1/conversations/cnv_1/message%73", True),
        (b"/api/v1/conversations", False),
        (b"/v1/chat/completions", True),
        (b"/v1/chat/completion%73", True),
        (b"/v1/embeddings", True),
        (b"/v1/responses", True),
        (b"/v1/responses/resp_1/cancel", False),
        (b"/v1/moderations", False),
    ],
)
def test_calls_of_a_model_are_known_however_they_are_written(path: bytes, uses: bool) -> None:
    """Services read paths without their escapes."""
    route = RouteTable().find(path)
    assert route is not None
    assert route.uses_tokens("POST", path) is uses
    assert not route.uses_tokens("GET", path)


@pytest.mark.parametrize(
    ("address", "limited"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_customers_with_ipv6_have_one_limit_each(address: str, limited: str) -> None:
    assert network(address) == limited
