"""HTTP of holds on the event log."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from services.billing.holds import Holds, HoldShown, HoldsShown, NewHold
from services.common.auth import Principal, require
from services.common.body import decode, documented, parse, read

router = APIRouter()
MAX_BYTES = 16_384


async def _holds(request: Request) -> Holds:
    found: Holds = request.app.state.holds
    return found


HoldsOf = Annotated[Holds, Depends(_holds)]
Caller = Annotated[Principal, Depends(require())]


@router.get("/api/v1/usage/holds", tags=["usage"])
async def holds(of: HoldsOf, principal: Caller) -> HoldsShown:
    """Holds on the topic `usage.records`, those that stand first; shown to the owner of the platform."""
    return await of.page(principal)


@router.put("/api/v1/usage/holds/{hold}", tags=["usage"], openapi_extra=documented(NewHold))
async def place_hold(request: Request, hold: str, of: HoldsOf, principal: Caller) -> HoldShown:
    """Keep records in the event log whatever is proven of them, until the hold is lifted. The log's own
    retention of 30 days goes on."""
    body = decode(parse(await read(request, max_bytes=MAX_BYTES)), NewHold)
    return await of.place(principal, hold, body)


@router.delete("/api/v1/usage/holds/{hold}", tags=["usage"])
async def lift_hold(hold: str, of: HoldsOf, principal: Caller) -> HoldShown:
    """Let the purge go on."""
    return await of.lift(principal, hold)
