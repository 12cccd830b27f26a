"""Inbox: a message that comes twice has its effect once (law 7).

The key is written in the transaction of the effect, so either both are there or neither is.
"""

from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

KEEP: Final = timedelta(days=30)
"""How long keys are kept: longer than any topic or queue can deliver a message again."""

NO_TENANT: Final = "-"
"""Tenant of a message that belongs to none."""


async def seen(
    connection: AsyncConnection, consumer: str, message_id: str, *, tenant_id: str = NO_TENANT
) -> bool:
    """True where `consumer` has already acted on the message; else it is marked, with this transaction.

    A second worker with the same message waits here until the first one's transaction ends.
    Role `app` names its own tenant.
    """
    result = await connection.execute(
        text(
            "insert into inbox (tenant_id, consumer, message_id) values (:tenant_id, :consumer, :message_id) "
            "on conflict do nothing"
        ),
        {"tenant_id": tenant_id, "consumer": consumer, "message_id": message_id},
    )
    return result.rowcount == 0


async def forget_old(connection: AsyncConnection, keep: timedelta = KEEP) -> int:
    """Delete keys older than `keep`; returns how many (role `system`)."""
    result = await connection.execute(
        text("delete from inbox where received_at < now() - cast(:keep as interval)"), {"keep": keep}
    )
    return result.rowcount
