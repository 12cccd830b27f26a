"""What memory keeps of a conversation goes with it: its turns are memories of who asked."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.knowledge import memory_of


async def forget(
    connection: AsyncConnection, tenant_id: str, conversation_id: str, run_id: str | None = None
) -> None:
    """No search finds its turns once this commits, or that of one run; memory removes vectors and bytes.
    Before the runs go.

    A turn that memory has not heard of yet gets the row of a deleted one: it then never becomes a memory.
    """
    here = {"conversation": conversation_id, "run": run_id}
    runs = await connection.execute(
        text(
            "select id, user_id from run where conversation_id = :conversation"
            " and tenant_id = current_tenant() and status = 'completed'"
            " and (cast(:run as text) is null or id = :run)"
        ),
        here,
    )
    if turns := [{"document": memory_of(tenant_id, run.id), "user": run.user_id} for run in runs]:
        await connection.execute(
            text(
                "insert into document (tenant_id, id, kind, user_id, name, created_by, deleted_at)"
                " values (current_tenant(), :document, 'memory', :user, '', :user, now())"
                " on conflict (tenant_id, id) do update"
                " set deleted_at = coalesce(document.deleted_at, excluded.deleted_at), live_version = null"
            ),
            turns,
        )
    await connection.execute(
        text(
            "delete from memory_turn where conversation_id = :conversation"
            " and (cast(:run as text) is null or run_id = :run)"
        ),
        here,
    )
