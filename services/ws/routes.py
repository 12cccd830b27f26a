"""HTTP of the WebSocket gateway."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from services.common.auth import Principal, require
from services.ws import schemas
from services.ws.access import SCOPE
from services.ws.tickets import SECONDS, Tickets

router = APIRouter()


@router.post("/api/v1/ws/tickets", tags=["ws"], status_code=201, response_model=None)
async def new_ticket(request: Request, principal: Annotated[Principal, Depends(require(SCOPE))]) -> Response:
    """A ticket for one WebSocket, good for 60 seconds: connect to `url` with `?ticket=`."""
    tickets: Tickets = request.app.state.tickets
    made = schemas.Ticket(await tickets.issue(principal), SECONDS, request.app.state.ws_address)
    return Response(
        schemas.encode(made), 201, media_type="application/json", headers={"cache-control": "no-store"}
    )
