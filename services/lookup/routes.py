"""HTTP of the lookup; all of it is internal."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from core.contracts.lookup import Event, Fates, Record, Rows, Sums, encode
from services.common.auth import require_system
from services.common.body import documented, json_body
from services.lookup.handlers import Lookup

router = APIRouter(prefix="/internal/usage", tags=["internal"], dependencies=[Depends(require_system)])
MAX_BYTES = 4 << 20


async def _lookup(request: Request) -> Lookup:
    found: Callable[[Callable[[], Awaitable[bool]]], Lookup] = request.app.state.lookup
    return found(request.is_disconnected)


LookupOf = Annotated[Lookup, Depends(_lookup)]


def _json(answer: Any) -> Response:
    return Response(encode(answer), media_type="application/json")


@router.post("/sums", openapi_extra=documented(Sums))
async def sums(
    lookup: LookupOf, body: Annotated[Sums, Depends(json_body(Sums, max_bytes=MAX_BYTES))]
) -> Response:
    """Landed usage of a tenant, added up from its rows."""
    return _json(await lookup.sums(body))


@router.post("/rows", openapi_extra=documented(Rows))
async def rows(
    lookup: LookupOf, body: Annotated[Rows, Depends(json_body(Rows, max_bytes=MAX_BYTES))]
) -> Response:
    """A page of the rows behind sums, with their coordinates."""
    return _json(await lookup.rows(body))


@router.post("/event", openapi_extra=documented(Event))
async def event(lookup: LookupOf, body: Annotated[Event, Depends(json_body(Event))]) -> Response:
    """Where an event was counted, by its identity."""
    return _json(await lookup.event(body))


@router.post("/record", openapi_extra=documented(Record))
async def record(lookup: LookupOf, body: Annotated[Record, Depends(json_body(Record))]) -> Response:
    """What became of the record at an offset."""
    return _json(await lookup.record(body))


@router.post("/fates", openapi_extra=documented(Fates))
async def fates(lookup: LookupOf, body: Annotated[Fates, Depends(json_body(Fates))]) -> Response:
    """What became of a tenant's records of a period, counted."""
    return _json(await lookup.fates(body))
