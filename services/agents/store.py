"""SQL of conversations and runs, on the caller's transaction.

Role `app`: row-level security decides what exists. Who of an organisation may see a conversation is
said by a `Viewer`, which every function that reads one takes.

Locks go from the conversation to its runs. The recorder holds runs when it comes to their conversation,
so it never waits for a conversation that is locked here (`for no key update` leaves its messages in).
"""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.run_events import Citation, Totals
from services.agents.model import INCOMPLETE, OPEN, AgentSpec, Role, Status, StoredMessage, stored_spec
from services.agents.notes import Identity
from services.common.paging import Page
from services.common.principal import Principal


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a list by id, which is by age: ids above and below (excluded), at most `limit` rows."""

    limit: int
    above: str | None
    below: str | None
    newest_first: bool

    @classmethod
    def of(cls, page: Page) -> "Window":
        newest_first = page.order == "desc"
        above, below = (page.before, page.after) if newest_first else (page.after, page.before)
        return cls(page.fetch, above or None, below or None, newest_first)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose conversations are seen: a person's own, those of all keys for a key, all for who holds
    `org:admin` and for the platform itself."""

    subject: str
    everybody: bool
    keys: bool

    @classmethod
    def of(cls, principal: Principal) -> "Viewer":
        return cls(principal.subject, principal.may("org:admin"), principal.kind == "api_key")


_SEEN: Final = "(cast(:everybody as boolean) or c.user_id = :subject or (cast(:keys as boolean) and c.user_id like 'key\\_%'))"
WINDOW: Final = """
    and (cast(:above as text) is null or {id} > :above) and (cast(:below as text) is null or {id} < :below)
    order by case when :newest_first then {id} end desc, {id} limit :limit
"""


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    agent_id: str
    user_id: str
    title: str
    turns: int
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Message:
    id: str
    conversation_id: str
    run_id: str | None
    role: Role
    text: str
    citations: tuple[Citation, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Run:
    tenant_id: str
    id: str
    conversation_id: str
    user_id: str
    agent_id: str
    agent_version: int
    spec: AgentSpec | None
    """None where what is stored cannot be read."""
    metadata: dict[str, Any]
    status: Status
    epoch: int
    last_seq: int
    cancel_by: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    message_id: str
    totals: Totals
    error_code: str
    error_message: str
    retryable: bool
    provider: str
    event_partition: int | None
    first_offset: int | None
    last_offset: int | None
    traceparent: str = field(repr=False)

    @property
    def ended(self) -> bool:
        return self.status not in OPEN

    @property
    def incomplete(self) -> bool:
        """True where the answer ends at a limit of tokens, not where the model had said all of it."""
        return self.status == "completed" and self.error_code == INCOMPLETE


_CONVERSATION: Final = (
    "c.id, c.agent_id, c.user_id, c.title, c.turns, c.metadata::text as metadata, c.created_at, c.updated_at"
)
_MESSAGE: Final = (
    "m.id, m.conversation_id, m.run_id, m.role, m.text, m.citations::text as citations, m.created_at"
)
TOTALS: Final = ", ".join(f"r.{name}" for name in Totals.__struct_fields__)
RUN: Final = f"""
    r.tenant_id, r.id, r.conversation_id, r.user_id, r.agent_id, r.agent_version, r.spec::text as spec,
    r.metadata::text as metadata, r.status, r.epoch, r.last_seq, r.cancel_by, r.created_at, r.started_at, r.ended_at,
    r.message_id, {TOTALS}, r.error_code, r.error_message,
    r.retryable, r.provider, r.event_partition, r.first_offset, r.last_offset, r.traceparent
"""


# --- conversations ------------------------------------------------------------------------------------


async def insert_conversation(
    connection: AsyncConnection,
    *,
    conversation_id: str,
    agent_id: str,
    user_id: str,
    title: str,
    metadata: dict[str, Any],
    opened_by: str | None,
) -> str:
    """Its id; of the one there is where this person already opened it by the same message."""
    row = await one(
        connection,
        "insert into conversation (tenant_id, id, agent_id, user_id, title, metadata, opened_by)"
        " values (current_tenant(), :id, :agent, :user, :title, cast(:metadata as jsonb), :opened_by)"
        " on conflict (tenant_id, user_id, agent_id, opened_by) where opened_by is not null do nothing returning id",
        id=conversation_id,
        agent=agent_id,
        user=user_id,
        title=title,
        metadata=json_of(metadata),
        opened_by=opened_by,
    )
    if row is None:
        row = await one(
            connection,
            "select id from conversation where user_id = :user and agent_id = :agent and opened_by = :opened_by",
            user=user_id,
            agent=agent_id,
            opened_by=opened_by,
        )
        assert row is not None, "the conflict is with this row"
    return str(row.id)


async def conversation(
    connection: AsyncConnection, viewer: Viewer, conversation_id: str, *, lock: bool = False
) -> Conversation | None:
    """`lock`ed until the end of the transaction to number a turn or to delete it."""
    row = await one(
        connection,
        f"select {_CONVERSATION} from conversation c where c.id = :id and {_SEEN}"
        f"{' for no key update' if lock else ''}",
        id=conversation_id,
        **asdict(viewer),
    )
    return None if row is None else _conversation(row)


async def conversations(
    connection: AsyncConnection, viewer: Viewer, window: Window, agent_id: str | None = None
) -> list[Conversation]:
    rows = await connection.execute(
        text(
            f"select {_CONVERSATION} from conversation c where {_SEEN}"
            f" and (cast(:agent as text) is null or c.agent_id = :agent) {WINDOW.format(id='c.id')}"
        ),
        {"agent": agent_id, **asdict(viewer), **asdict(window)},
    )
    return [_conversation(row) for row in rows]


async def rename_conversation(connection: AsyncConnection, conversation_id: str, title: str) -> None:
    await connection.execute(
        text("update conversation set title = :title, updated_at = now() where id = :id"),
        {"id": conversation_id, "title": title},
    )


async def delete_conversation(connection: AsyncConnection, conversation_id: str) -> None:
    """With its messages, runs and checkpoints."""
    await connection.execute(text("delete from conversation where id = :id"), {"id": conversation_id})


async def messages(connection: AsyncConnection, conversation_id: str, page: Page) -> list[Message]:
    """In the order of the talk. Cursors are ids of messages of this conversation."""
    newest_first = page.order == "desc"
    above, below = (page.before, page.after) if newest_first else (page.after, page.before)
    direction = "desc" if newest_first else "asc"
    at = "(select o.turn, o.place from message o where o.id = :{0} and o.conversation_id = :conversation)"
    rows = await connection.execute(
        text(
            f"select {_MESSAGE} from message m where m.conversation_id = :conversation"
            f" and (cast(:above as text) = '' or (m.turn, m.place) > {at.format('above')})"
            f" and (cast(:below as text) = '' or (m.turn, m.place) < {at.format('below')})"
            f" order by m.turn {direction}, m.place {direction} limit :limit"
        ),
        {"conversation": conversation_id, "above": above, "below": below, "limit": page.fetch},
    )
    return [_message(row) for row in rows]


async def message(connection: AsyncConnection, message_id: str) -> Message | None:
    row = await one(connection, f"select {_MESSAGE} from message m where m.id = :id", id=message_id)
    return None if row is None else _message(row)


async def asked_in(connection: AsyncConnection, run_id: str) -> Message | None:
    """The message that a run answers."""
    row = await one(
        connection,
        f"select {_MESSAGE} from message m join run r on r.id = m.run_id and m.turn = r.turn"
        " where m.run_id = :run and m.place = 0",
        run=run_id,
    )
    return None if row is None else _message(row)


async def sent_before(
    connection: AsyncConnection, conversation_id: str, client_msg_id: str
) -> Message | None:
    row = await one(
        connection,
        f"select {_MESSAGE} from message m where m.conversation_id = :conversation and m.client_msg_id = :sent",
        conversation=conversation_id,
        sent=client_msg_id,
    )
    return None if row is None else _message(row)


async def insert_messages(
    connection: AsyncConnection,
    conversation_id: str,
    turn: int,
    said: list[StoredMessage],
    *,
    run_id: str | None = None,
    client_msg_id: str | None = None,
    place: int = 0,
) -> None:
    """Messages of a turn, from `place` on: at 0 is what its run answers, below what was told before it."""
    await connection.execute(
        text(
            "insert into message (tenant_id, id, conversation_id, run_id, turn, place, role, text, citations, client_msg_id)"
            " select current_tenant(), m.id, :conversation, :run, :turn, m.place - 1 + cast(:place as int), m.role, m.text,"
            " cast(m.citations as jsonb), :sent"
            " from unnest(cast(:ids as text[]), cast(:roles as text[]), cast(:texts as text[]), cast(:citations as text[]))"
            " with ordinality as m (id, role, text, citations, place)"
        ),
        {
            "conversation": conversation_id,
            "run": run_id,
            "turn": turn,
            "sent": client_msg_id,
            "place": place,
            "ids": [one.id for one in said],
            "roles": [one.role for one in said],
            "texts": [one.text for one in said],
            "citations": [json_of(one.citations) for one in said],
        },
    )


# --- runs ---------------------------------------------------------------------------------------------


async def insert_run(
    connection: AsyncConnection,
    *,
    run_id: str,
    conversation_id: str,
    turn: int,
    user_id: str,
    agent_id: str,
    agent_version: int,
    spec: AgentSpec,
    metadata: dict[str, Any],
    traceparent: str,
) -> None:
    """A queued run whose first event is `run.queued`; counts the conversation's turn."""
    await connection.execute(
        text(
            "update conversation set turns = :turn, updated_at = clock_timestamp() where id = :conversation"
        ),
        {"turn": turn, "conversation": conversation_id},
    )
    await connection.execute(
        text(
            "insert into run (tenant_id, id, conversation_id, turn, user_id, agent_id, agent_version, spec, metadata,"
            " traceparent, last_seq, safe_seq) values (current_tenant(), :id, :conversation, :turn, :user, :agent,"
            " :version, cast(:spec as jsonb), cast(:metadata as jsonb), :traceparent, 1, 1)"
        ),
        {
            "id": run_id,
            "conversation": conversation_id,
            "turn": turn,
            "user": user_id,
            "agent": agent_id,
            "version": agent_version,
            "spec": spec.stored(),
            "metadata": json_of(metadata),
            "traceparent": traceparent,
        },
    )


async def run(connection: AsyncConnection, viewer: Viewer, run_id: str, *, lock: bool = False) -> Run | None:
    row = await one(
        connection,
        f"select {RUN} from run r join conversation c on c.tenant_id = r.tenant_id and c.id = r.conversation_id"
        f" where r.id = :id and {_SEEN}{' for update of r' if lock else ''}",
        id=run_id,
        **asdict(viewer),
    )
    return None if row is None else run_of(row)


async def runs(
    connection: AsyncConnection, viewer: Viewer, conversation_id: str, window: Window
) -> list[Run]:
    rows = await connection.execute(
        text(
            f"select {RUN} from run r join conversation c on c.tenant_id = r.tenant_id and c.id = r.conversation_id"
            f" where r.conversation_id = :conversation and {_SEEN} {WINDOW.format(id='r.id')}"
        ),
        {"conversation": conversation_id, **asdict(viewer), **asdict(window)},
    )
    return [run_of(row) for row in rows]


async def open_runs(connection: AsyncConnection, conversation_id: str) -> list[Run]:
    """Those that have not ended, locked."""
    rows = await connection.execute(
        text(
            f"select {RUN} from run r where r.conversation_id = :conversation and r.tenant_id = current_tenant()"
            " and r.status in ('queued', 'running', 'waiting') order by r.turn for update"
        ),
        {"conversation": conversation_id},
    )
    return [run_of(row) for row in rows]


async def count_open(connection: AsyncConnection, conversation_id: str) -> int:
    row = await one(
        connection,
        "select count(*) as count from run where conversation_id = :conversation"
        " and tenant_id = current_tenant() and status in ('queued', 'running', 'waiting')",
        conversation=conversation_id,
    )
    assert row is not None, "count gives a row"
    return int(row[0])


async def status_of(connection: AsyncConnection, run_id: str) -> Status:
    """Of a run that is there."""
    row = await one(connection, "select status from run where id = :id", id=run_id)
    assert row is not None, "the caller has just seen it"
    found: Status = row.status
    return found


async def cancel_idle(connection: AsyncConnection, run_id: str, by: str) -> None:
    """End a locked run that nobody executes, and what it asks; its terminal event is the next one."""
    await connection.execute(
        text(
            "with ended as (update run set status = 'cancelled', cancel_by = :by, last_seq = last_seq + 1,"
            " ended_at = clock_timestamp() where id = :id and status in ('queued', 'waiting') returning tenant_id, id),"
            # Of one that was to end when it asked, and which nobody has taken since.
            " unanswered as (update approval a set decision = 'cancelled', decided_at = clock_timestamp() from ended e"
            " where a.tenant_id = e.tenant_id and a.run_id = e.id and a.decision is null)"
            " delete from checkpoint c using ended e where c.tenant_id = e.tenant_id and c.run_id = e.id"
        ),
        {"id": run_id, "by": by},
    )


async def ask_to_cancel(connection: AsyncConnection, run_id: str, by: str, channel: str) -> None:
    """Tell whoever executes the run."""
    await connection.execute(
        text(
            "with told as (update run set cancel_by = :by where id = :id and cancel_by is null returning id)"
            " select pg_notify(:channel, id || ' ' || :by) from told"
        ),
        {"id": run_id, "by": by, "channel": channel},
    )


# --- for other parts of the platform (role `system`) ----------------------------------------------------


async def run_of_any(connection: AsyncConnection, run_id: str) -> tuple[Run, str] | None:
    """The run, and the user whose conversation it is in."""
    row = await one(
        connection,
        f"select {RUN}, c.user_id as talker from run r"
        " join conversation c on c.tenant_id = r.tenant_id and c.id = r.conversation_id where r.id = :id",
        id=run_id,
    )
    return None if row is None else (run_of(row), str(row.talker))


async def latest_run_of_any(
    connection: AsyncConnection, conversation_id: str
) -> tuple[Row[Any] | None, Run | None]:
    """The conversation (tenant_id, user_id) and its latest run."""
    found = await one(
        connection, "select tenant_id, user_id from conversation where id = :id", id=conversation_id
    )
    if found is None:
        return None, None
    row = await one(
        connection,
        f"select {RUN} from run r where r.tenant_id = :tenant and r.conversation_id = :id order by r.turn desc limit 1",
        id=conversation_id,
        tenant=found.tenant_id,
    )
    return found, None if row is None else run_of(row)


# --- rows ---------------------------------------------------------------------------------------------


def json_of(value: object) -> str:
    return msgspec.json.encode(value).decode()


def spec_of(text_of: str) -> AgentSpec:
    return msgspec.json.decode(text_of, type=AgentSpec)


def _conversation(row: Row[Any]) -> Conversation:
    return Conversation(**{**row._mapping, "metadata": msgspec.json.decode(row.metadata)})


def _message(row: Row[Any]) -> Message:
    citations = msgspec.json.decode(row.citations, type=tuple[Citation, ...])
    return Message(**{**row._mapping, "citations": citations})


def run_of(row: Row[Any]) -> Run:
    values = {field.name: row._mapping[field.name] for field in fields(Run) if field.name != "totals"}
    values |= {"spec": stored_spec(row.spec), "metadata": msgspec.json.decode(row.metadata)}
    return Run(**values, totals=totals_of(row))


def totals_of(row: Row[Any]) -> Totals:
    """Of a row with the columns of `TOTALS`."""
    return Totals(*(row._mapping[name] for name in Totals.__struct_fields__))


def identity_of(found: Run) -> Identity:
    return Identity(
        run_id=found.id,
        tenant_id=found.tenant_id,
        user=found.user_id,
        agent_id=found.agent_id,
        agent_version=found.agent_version,
        conversation_id=found.conversation_id,
        epoch=found.epoch,
        traceparent=found.traceparent,
    )


async def one(connection: AsyncConnection, sql: str, **parameters: object) -> Row[Any] | None:
    return (await connection.execute(text(sql), parameters)).one_or_none()
