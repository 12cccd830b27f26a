"""Going on behind a response: in its conversation, or, where others went on there already, in a copy of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from services.agents import leases, store
from services.agents.model import StoredMessage
from services.agents.store import Viewer
from services.common.errors import Problem, not_found


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next message is said.

    Attributes:
        conversation_id: None for a new conversation, of `owner`, in which `said` was said before.
    """

    conversation_id: str | None
    owner: str = ""
    title: str = ""
    said: Sequence[StoredMessage] = ()


async def behind(connection: AsyncConnection, viewer: Viewer, run_id: str) -> Place:
    """The place behind a run. Its conversation is locked, so that of two who go on behind it one is the first.

    Raises:
        Problem: 404; 409 `previous_response_open` where its answer is not there to be copied, or
            `previous_response_unreadable` where what was said cannot be read.
    """
    seen = await store.run(connection, viewer, run_id)
    there = seen and await store.conversation(connection, viewer, seen.conversation_id, lock=True)
    # Read again: it may have ended, or gone, while the lock was waited for.
    found = await store.run(connection, viewer, run_id)
    if not there or found is None:
        raise not_found("response")
    row = await store.one(
        connection,
        "select r.turn, exists (select from run l where l.tenant_id = r.tenant_id"
        " and l.conversation_id = r.conversation_id and l.turn > r.turn) as passed from run r where r.id = :run",
        run=run_id,
    )
    if row is None:
        raise not_found("response")
    if not row.passed:
        return Place(there.id)
    if not found.ended:
        raise Problem(
            409,
            "previous_response_open",
            "The response has not ended",
            "Another response goes on behind this one already; wait for its end to go on behind it once more.",
            headers={"x-should-retry": "false"},
        )
    try:
        said = await leases.history(connection, found.tenant_id, there.id, row.turn + 1)
    except msgspec.MsgspecError:
        raise Problem(
            409,
            "previous_response_unreadable",
            "The conversation cannot be read",
            "What was said up to this response cannot be read; begin anew, without previous_response_id.",
            headers={"x-should-retry": "false"},
        ) from None
    return Place(None, there.user_id, there.title, said)
