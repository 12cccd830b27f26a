"""Query parameters that no route declares are refused, below `/api` and nowhere else."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, Query

from services.common.app import service_app
from services.common.lifecycle import Lifecycle
from services.common.paging import PageQuery

inner = APIRouter(prefix="/deep")
router = APIRouter()


def since(first: Annotated[str, Query(alias="from")] = "") -> str:
    return first


@inner.get("/things/{thing_id}")
async def things(
    thing_id: str, page: PageQuery, first: Annotated[str, Depends(since)], kind: str = ""
) -> dict[str, Any]:
    return {"id": thing_id, "limit": page.limit, "from": first, "kind": kind}


@router.get("/api/v1/bare")
@router.get("/v1/models")
@router.get("/internal/bare")
async def bare() -> dict[str, Any]:
    return {}


outer = APIRouter(prefix="/api/v1")
outer.include_router(inner)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    app = service_app("sample", Lifecycle(), routers=[outer, router])
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://sample") as client:
        yield client


async def test_what_routes_and_their_dependencies_declare_is_known(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/api/v1/deep/things/7?limit=3&after=a&before=b&order=asc&from=now&kind=x&kind=y")
    assert answer.status_code == 200
    assert answer.json() == {"id": "7", "limit": 3, "from": "now", "kind": "y"}


async def test_unknown_ones_are_named_with_those_that_are_known(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/api/v1/deep/things/7?limit=3&first=now&LIMIT=1&a%2Fb~=1&first=then&thing_id=8")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "unknown_parameter")
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"] == (
        "No query parameter is named 'first', 'LIMIT', 'a/b~', 'thing_id'; "
        "known here: kind, limit, after, before, order, from."
    )
    assert [error["path"] for error in problem["errors"]] == [
        "/query/first",
        "/query/LIMIT",
        "/query/a~1b~0",
        "/query/thing_id",
    ]


async def test_a_route_without_any_says_so(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/api/v1/bare?")).status_code == 200
    answer = await http.get("/api/v1/bare?debug")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "No query parameter is named 'debug'; this route has none."


async def test_the_answer_does_not_grow_with_the_query(http: httpx2.AsyncClient) -> None:
    query = "&".join(f"{'p' * 1000}{number}=1" for number in range(50))
    answer = await http.get(f"/api/v1/bare?{query}")
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 10
    assert len(answer.content) < 4000


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/internal/bare", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"],
)
async def test_other_paths_take_any(http: httpx2.AsyncClient, path: str) -> None:
    assert (await http.get(f"{path}?whatever=1")).status_code == 200


async def test_no_such_route_stays_no_such_route(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/api/v1/nowhere?whatever=1")).status_code == 404
    assert (await http.delete("/api/v1/bare?whatever=1")).status_code == 405


async def test_the_reference_does_not_list_the_check(http: httpx2.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert "parameters" not in paths["/api/v1/bare"]["get"]
