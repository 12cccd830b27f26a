"""Dead letters over REST: an organisation sees and sends its own, the platform's owner everybody's."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import text

from core import audit
from core.database import Database
from core.messaging import dead_letters
from core.messaging.dead_letters import DeadLetter
from core.queue.api import QueueUnavailableError, WorkQueue
from core.topology import queue_names
from services.common.errors import Problem, invalid, not_found
from services.common.principal import Principal
from services.relay import schemas

Act = Callable[..., Awaitable[int]]

_LOCK: Final = 7_301_944_200_615
"""Advisory lock of whoever looks: letters that one holds are not there for another."""
_TARGET: Final = re.compile(r"[a-z][A-Za-z0-9_.:\-]{0,159}", re.ASCII)


class DeadLetters:
    """Args:
    database: role `system`.
    queue: the started work queue.
    """

    def __init__(self, database: Database, queue: WorkQueue) -> None:
        self._database, self._queue = database, queue
        self._here = asyncio.Lock()

    async def listed(self, principal: Principal, queue: str | None, limit: int) -> schemas.DeadLetters:
        """Raises: Problem 422 for a queue that there is not."""
        names = queue_names()
        if queue is not None and queue not in names:
            raise invalid("/query/queue", f"there is no such queue; the queues are {', '.join(names)}")
        found: list[DeadLetter] = []
        async with self._alone():
            for name in names if queue is None else (queue,):
                if (room := limit + 1 - len(found)) > 0:
                    found += await dead_letters.letters(self._queue, (name,), room, tenant=_whose(principal))
        return {
            "object": "list",
            "data": [schemas.shown(letter) for letter in found[:limit]],
            "has_more": len(found) > limit,
        }

    async def redrive(self, principal: Principal, letter_id: str) -> None:
        """Raises: Problem 404."""
        await self._act(principal, letter_id, "dead_letter.redrive", dead_letters.redrive)

    async def discard(self, principal: Principal, letter_id: str) -> None:
        """Raises: Problem 404."""
        await self._act(principal, letter_id, "dead_letter.discard", dead_letters.drop)

    async def _act(self, principal: Principal, letter_id: str, action: str, act: Act) -> None:
        """The queue is not in the audit's transaction: who acts is on record before the queue changes."""
        name, _, message_id = letter_id.partition(schemas.SEPARATOR)
        if name not in queue_names():
            raise not_found("dead letter")
        tenant = _whose(principal)
        async with self._alone():
            known = await dead_letters.letters(self._queue, (name,), dead_letters.LIMIT, tenant=tenant)
            letter = next((one for one in known if one.id == message_id), None)
            if letter is None:
                raise not_found("dead letter")
            await self._record(principal, action, letter, "success")
            try:
                done = await act(self._queue, name, (message_id,), tenant=tenant)
            except QueueUnavailableError:
                await self._record(principal, action, letter, "failure")
                raise
            if not done:
                await self._record(principal, action, letter, "failure")
                raise not_found("dead letter")

    async def _record(self, by: Principal, action: str, letter: DeadLetter, outcome: audit.Outcome) -> None:
        name = schemas.id_of(letter)
        async with self._database.writer() as connection:
            await audit.record(
                connection,
                action=action,
                actor=by.subject,
                tenant_id=audit.tenant_of(letter.tenant),
                # An id that somebody else gave may be any text.
                target=name
                if _TARGET.fullmatch(name)
                else f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
                outcome=outcome,
                detail={"queue": letter.queue, "attempts": str(letter.attempts)},
            )

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One at a time, in this process and over all instances."""
        async with self._here, self._database.writer() as connection:
            await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield


def _whose(principal: Principal) -> str | None:
    if principal.platform_owner or principal.kind == "system":
        return None
    if not principal.tenant_id:
        raise Problem(422, "tenant_required", "Which organisation?", "You belong to no organisation.")
    return principal.tenant_id
