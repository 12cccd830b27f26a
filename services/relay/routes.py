"""HTTP of the relay service: what the queues gave up."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from services.common.auth import Principal, require
from services.relay import schemas
from services.relay.handlers import DeadLetters

router = APIRouter()


async def _dead_letters(request: Request) -> DeadLetters:
    found: DeadLetters = request.app.state.dead_letters
    return found


DeadLettersOf = Annotated[DeadLetters, Depends(_dead_letters)]
Caller = Annotated[Principal, Depends(require("dead_letters:write"))]
LetterId = Annotated[
    str, Path(alias="id", max_length=512, description="As the list shows it: `<queue>:<message>`.")
]


@router.get("/api/v1/dead-letters", tags=["operations"])
async def list_dead_letters(
    letters: DeadLettersOf,
    principal: Caller,
    queue: Annotated[
        str | None, Query(max_length=256, description="Only of this queue, such as `document.index`.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many.")] = 100,
) -> schemas.DeadLetters:
    """Messages that their queues gave up, with the reason: your organisation's, or everybody's for the
    owner of the platform. Of each queue the 10,000 oldest are looked at."""
    return await letters.listed(principal, queue, limit)


@router.post("/api/v1/dead-letters/{id}/redrive", tags=["operations"])
async def redrive(letters: DeadLettersOf, principal: Caller, letter_id: LetterId) -> schemas.Settled:
    """Send it to its queue again, with all its attempts before it. It keeps its message id, so what it
    has already done is not done twice."""
    await letters.redrive(principal, letter_id)
    return {"id": letter_id, "object": "dead_letter", "outcome": "redriven"}


@router.post("/api/v1/dead-letters/{id}/discard", tags=["operations"])
async def discard(letters: DeadLettersOf, principal: Caller, letter_id: LetterId) -> schemas.Settled:
    """Delete it for good: its work is never done."""
    await letters.discard(principal, letter_id)
    return {"id": letter_id, "object": "dead_letter", "outcome": "discarded"}
