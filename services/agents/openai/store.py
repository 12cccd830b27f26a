"""SQL of the OpenAI surface that nobody else needs. Role `app`."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def delete_run(connection: AsyncConnection, run_id: str, conversation_id: str) -> None:
    """A run with what was asked and answered; its conversation, which the caller has locked, too where
    nothing else was said in it."""
    for statement in (
        # What was told before the question has no run: the turn holds both.
        "delete from message m using run r where r.id = :run and m.conversation_id = r.conversation_id"
        " and m.turn = r.turn",
        "delete from run where id = :run",
        "delete from conversation c where c.id = :conversation"
        " and not exists (select from run r where r.conversation_id = c.id)",
    ):
        await connection.execute(text(statement), {"run": run_id, "conversation": conversation_id})
