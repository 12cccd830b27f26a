"""What memory hears: documents that wait for their index, and turns that have ended.

A finished turn (what a person asked, what was answered) becomes a document of kind `memory` of that
person. Until its run has ended, it waits in a row; the document's id comes from the run, so a turn
that is heard twice is one memory, and one that was deleted does not come back.
"""

from typing import Any, Final

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import now
from core.contracts import agents
from core.contracts.agents import AgentEvent
from core.contracts.knowledge import job, memory_of
from core.database import Database, tenant
from core.eventlog.api import Record
from core.messaging.queues import Message, Permanent
from core.messaging.skipped import skip
from core.objects.api import ObjectStore
from services.memory import store, usage
from services.memory.documents import object_key, queued

GROUP: Final = "memory.turns"
BUCKET: Final = "knowledge"
_HEARD: Final = frozenset({"run.queued", "message.completed", *agents.TERMINAL})
_NAME_LENGTH: Final = 80


class WorkList:
    """Handler of `document.index`: the version that a job names is on the work list."""

    def __init__(self, system: Database) -> None:
        self._system = system

    async def __call__(self, message: Message) -> None:
        """Raises: Permanent for a job that cannot be read or names nothing."""
        try:
            wanted = job(message.body)
        except msgspec.MsgspecError as error:
            raise Permanent(f"not a document job: {error}") from None
        async with self._system.writer() as connection:
            found = await store.requeue(connection, wanted.tenant, wanted.document, wanted.version)
        if found is None:
            # Deleted while the job waited, which is no failure; a job for what never was is one.
            async with self._system.writer() as connection:
                if not await _was(connection, wanted.tenant, wanted.document):
                    raise Permanent(f"no version {wanted.version} of document {wanted.document}")


class Turns:
    """Handler of `agent.events`. What no memory can ever come of is left out on record: tried again for
    ever it would hold its partition.

    Args:
        database: role `app`.
        system: role `system`.
    """

    def __init__(self, database: Database, system: Database, objects: ObjectStore) -> None:
        self._database, self._system, self._objects = database, system, objects

    async def __call__(self, record: Record) -> None:
        try:
            head = agents.head(record.value)
            if head.type not in _HEARD:
                return
            event = agents.event(record.value)
        except msgspec.MsgspecError as error:
            # The message says where in it and what was expected there, never what it holds.
            await skip(self._system, GROUP, record, "unreadable", str(error))
            return
        if not event.tenant or not event.user:
            await skip(self._system, GROUP, record, "unreadable", "it names no organisation or no person")
            return
        try:
            await self._hear(event)
        except DBAPIError as error:
            if (rule := refusal_of(error)) is None:
                raise
            await skip(self._system, GROUP, record, "refused", f"{rule}, organisation {event.tenant}")

    async def _hear(self, event: AgentEvent) -> None:
        with tenant(event.tenant):
            if event.type == "run.queued":
                question = event.data.get("input", {}).get("text", "")
                await self._note(event, "question", question)
            elif event.type == "message.completed":
                await self._note(event, "answer", event.data.get("text", ""))
            else:
                await self._end(event)

    async def _note(self, event: AgentEvent, part: str, content: object) -> None:
        if not isinstance(content, str) or not content.strip():
            return
        async with self._database.writer() as connection:
            await connection.execute(
                text(
                    f"""
                    insert into memory_turn (tenant_id, run_id, user_id, conversation_id, {part})
                    values (:tenant_id, :run_id, :user_id, :conversation_id, :content)
                    on conflict (tenant_id, run_id) do update set {part} = excluded.{part}
                    """
                ),
                {
                    "tenant_id": event.tenant,
                    "run_id": event.subject,
                    "user_id": event.user,
                    "conversation_id": event.conversation,
                    "content": content.replace("\x00", "")[:200_000],
                },
            )

    async def _end(self, event: AgentEvent) -> None:
        where = {"tenant_id": event.tenant, "run_id": event.subject}
        async with self._database.writer() as connection:
            rows = await connection.execute(
                text(
                    "select user_id, question, answer from memory_turn "
                    "where tenant_id = :tenant_id and run_id = :run_id"
                ),
                where,
            )
            turn = rows.one_or_none()
        if turn is None:
            return
        content = b""
        document_id = memory_of(event.tenant, event.subject)
        key = object_key(event.tenant, document_id, 1)
        if event.type == "run.completed" and turn.question and turn.answer:
            content = f"User: {turn.question}\n\nAssistant: {turn.answer}\n".encode()
        async with self._database.writer() as connection:
            if content:
                document = store.Document(
                    document_id, None, "memory", turn.user_id, _title(turn.question), None, 0, now()
                )
                if await store.insert_document(connection, event.tenant, document, turn.user_id):
                    await self._store(connection, event.tenant, document, key, content)
            await connection.execute(
                text("delete from memory_turn where tenant_id = :tenant_id and run_id = :run_id"), where
            )

    async def _store(
        self, connection: AsyncConnection, tenant_id: str, document: store.Document, key: str, content: bytes
    ) -> None:
        """The bytes first: a row without them would be a document that cannot be indexed. Bytes whose
        transaction fails are written again under the same key when the event comes again."""
        stored = await self._objects.put(BUCKET, key, content)
        number = await store.next_version(connection, document.id)
        if number is None:
            return
        await store.insert_version(
            connection,
            tenant_id,
            document_id=document.id,
            version=number,
            media_type="text/plain",
            object_key=key,
            created_by=document.user_id,
            state="queued",
            size=stored.size,
            sha256=stored.sha256,
            object_version=stored.version,
        )
        await queued(connection, tenant_id, document, number)
        await usage.stored(connection, tenant_id, document.id, number, stored.size, BUCKET)


def refusal_of(error: DBAPIError) -> str | None:
    """The rule that what was to be stored breaks now and at each later try, such as that its organisation
    exists; None for a server that is away or busy."""
    cause: Any = getattr(error.orig, "__cause__", None)
    state = str(getattr(error.orig, "sqlstate", "") or "")
    if error.connection_invalidated or state[:2] not in {"22", "23"}:
        return None
    return f"{state} {getattr(cause, 'constraint_name', None) or ''}".strip()


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _NAME_LENGTH else line[: _NAME_LENGTH - 1] + "…"


async def _was(connection: AsyncConnection, tenant_id: str, document_id: str) -> bool:
    rows = await connection.execute(
        text("select 1 from document where tenant_id = :tenant_id and id = :id"),
        {"tenant_id": tenant_id, "id": document_id},
    )
    return rows.one_or_none() is not None
