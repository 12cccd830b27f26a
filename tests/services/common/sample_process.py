"""A service with one route of each kind of trouble, built from `services.common` alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.responses import StreamingResponse

from core.eventlog.api import LogUnavailableError
from core.queue.api import QueueUnavailableError
from services.common.app import service_app
from services.common.auth import Identity, Principal, require, require_system
from services.common.body import documented, json_body
from services.common.errors import Problem, not_found
from services.common.lifecycle import Lifecycle
from services.common.paging import PageQuery, listing
from services.common.server import run

KEY = b"k" * 32
router = APIRouter(prefix="/api/v1")


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Things(msgspec.Struct, forbid_unknown_fields=True):
    things: list[Thing]


@router.post("/things/{thing_id}", openapi_extra=documented(Things))
async def change(
    thing_id: str, body: Annotated[Things, Depends(json_body(Things, max_bytes=1000))]
) -> dict[str, Any]:
    return {"id": thing_id, "names": [thing.name for thing in body.things]}


@router.get("/things")
async def things(page: PageQuery) -> dict[str, Any]:
    return listing([{"id": f"thing_{number}"} for number in range(page.fetch)], page)


@router.get("/trouble/{kind}")
async def trouble(kind: str) -> None:
    if kind == "problem":
        raise Problem(
            409, "taken", "Taken", "That name is taken; choose another.", headers={"retry-after": "7"}
        )
    if kind == "database":
        raise OperationalError("select 1", {}, ConnectionRefusedError("10.0.0.1:5432"))
    if kind == "deadlock":
        error: Exception = asyncpg.DeadlockDetectedError("process 1 waits for process 2")
        raise DBAPIError("select 1", {}, error)
    if kind == "log":
        raise LogUnavailableError("kafka at 10.0.0.1 does not answer")
    if kind == "queue":
        raise QueueUnavailableError("rabbitmq at 10.0.0.1 does not answer")
    if kind == "missing":
        raise not_found("thing")
    raise RuntimeError("a secret of the inside")


@router.get("/half")
async def half() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half of"
        raise RuntimeError("broken in the middle")

    return StreamingResponse(pieces())


@router.get("/slow")
async def slow(seconds: float) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"slept": seconds}


@router.get("/mine")
async def mine(principal: Annotated[Principal, Depends(require("usage:read"))]) -> dict[str, str]:
    return {"tenant": principal.tenant_id}


@router.get("/inner")
async def inner(_: Annotated[Principal, Depends(require_system)]) -> dict[str, str]:
    return {}


def create_app(lifecycle: Lifecycle) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.identity = Identity(KEY, None)
        yield

    return service_app("sample", lifecycle, routers=[router], lifespan=lifespan, description="For tests.")


if __name__ == "__main__":
    run(create_app, "sample", 8099)
