"""For other parts of the platform: whose a run or conversation is, and where its events stand."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from core.database import Database
from services.agents import schemas, store
from services.common.auth import require_system
from services.common.errors import not_found

router = APIRouter(dependencies=[Depends(require_system)], tags=["internal"])


class Places:
    """Looks across organisations: the caller is the platform and decides by what it is told.

    Args:
        database: role `system`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> schemas.RunPlace:
        """`user` is whose conversation it is in: an administrator may have asked there. Raises: Problem 404."""
        async with self._database.writer() as connection:
            found = await store.run_of_any(connection, run_id)
        if found is None:
            raise not_found("run")
        run, talker = found
        return {**schemas.run_place(run), "user": talker}

    async def of_conversation(self, conversation_id: str) -> schemas.RunPlace:
        """With its latest run. Raises: Problem 404."""
        async with self._database.writer() as connection:
            found, latest = await store.latest_run_of_any(connection, conversation_id)
        if found is None:
            raise not_found("conversation")
        if latest is not None:
            return {**schemas.run_place(latest), "user": found.user_id}
        return schemas.RunPlace(
            run=None,
            tenant=found.tenant_id,
            user=found.user_id,
            conversation=conversation_id,
            epoch=0,
            last_seq=0,
            status="",
            first=None,
            last=None,
        )


async def _places(request: Request) -> Places:
    found: Places = request.app.state.agents.places
    return found


PlacesOf = Annotated[Places, Depends(_places)]


@router.get("/internal/runs/{id}")
async def run_place(places: PlacesOf, id: str) -> schemas.RunPlace:
    """A run of any organisation."""
    return await places.of_run(id)


@router.get("/internal/conversations/{id}")
async def conversation_place(places: PlacesOf, id: str) -> schemas.RunPlace:
    """A conversation of any organisation with its latest run."""
    return await places.of_conversation(id)
