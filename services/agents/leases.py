"""SQL of the runner: taking runs, what they start from, giving them back. Role `system`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import now
from core.contracts.agents import TASKS, AgentTask
from core.contracts.run_events import Citation, Totals
from core.eventlog.api import NewRecord
from core.messaging.outbox import enqueue
from services.agents.model import AgentSpec, Answered, Checkpoint, RunContext, StoredMessage, stored_spec
from services.agents.notes import Identity
from services.agents.store import TOTALS, totals_of

HISTORY: Final = 200
"""Messages of a conversation's earlier turns that a run is given, the newest, and before them all that the
conversation was opened with. Nothing shortens them to what the model holds: beyond it a run fails
(`context_too_long`)."""

_FIRST: Final = """
          not exists (
              select from run e where e.tenant_id = r.tenant_id and e.conversation_id = r.conversation_id
                and e.turn < r.turn and e.status in ('queued', 'running', 'waiting'))
"""
"""Within a conversation runs go one after another: none is taken while an earlier one is open."""
_CLAIM: Final = text(
    f"""
    with next as (
        select r.tenant_id, r.id, r.status from run r
        where r.status in ('queued', 'running') and (r.status = 'queued' or r.lease_until < clock_timestamp())
          and {_FIRST}
        order by r.sequence limit :limit for update skip locked
    )
    update run r set
        status = 'running', epoch = r.epoch + 1, owner = :instance,
        lease_until = clock_timestamp() + cast(:lease as float8) * interval '1 second',
        started_at = coalesce(r.started_at, clock_timestamp()),
        stalls = case when r.status = 'queued' then 0 when r.owner = :instance then r.stalls else r.stalls + 1 end
    from next where r.tenant_id = next.tenant_id and r.id = next.id
    returning r.tenant_id, r.id, r.conversation_id, r.turn, r.user_id, r.agent_id, r.agent_version, r.spec::text as spec, r.epoch,
              r.stalls, r.last_seq, r.safe_seq, r.steps, r.cancel_by, r.traceparent, next.status as found,
              {TOTALS},
              extract(epoch from clock_timestamp() - r.started_at - r.waited) as running_for
    """
)
_HISTORY: Final = text(
    """
    select id, role, text, citations::text as citations from (
        (select * from message where tenant_id = :tenant and conversation_id = :conversation
            and turn > 0 and turn < :turn order by turn desc, place desc limit :limit)
        union all
        select * from message where tenant_id = :tenant and conversation_id = :conversation and turn = 0
    ) given order by turn, place
    """
)


class UnreadableError(Exception):
    """What is stored of a run cannot be read: an older or newer version stored it, or a hand changed it."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that is ours now."""

    identity: Identity
    turn: int
    """Of the conversation."""
    spec: AgentSpec | None
    """None where what is stored cannot be read."""
    stalls: int
    last_seq: int
    safe_seq: int
    steps: int
    cancel_by: str | None
    running_for: float
    """Seconds since its first start, without those it waited for people."""
    taken_over: bool
    """Another instance had it, and did not end it."""
    totals: Totals
    """When it last waited for a person."""


async def claim(
    connection: AsyncConnection, *, instance: str, lease_seconds: float, limit: int
) -> list[Claimed]:
    """Take up to `limit` runs that wait or whose holder let its lease end.

    An instance that was too busy to renew and takes its own run anew has not died of it: no stall.
    """
    rows = await connection.execute(_CLAIM, {"instance": instance, "lease": lease_seconds, "limit": limit})
    return [_claimed(row) for row in sorted(rows, key=lambda row: row.id)]


async def context(connection: AsyncConnection, claimed: Claimed) -> tuple[RunContext, int]:
    """What the run starts from, and the next free place among the messages of its turn.

    Raises:
        UnreadableError: no execution could start from it, here or elsewhere.
    """
    identity = claimed.identity
    if claimed.spec is None:
        raise UnreadableError("its spec")
    key = {"tenant": identity.tenant_id, "conversation": identity.conversation_id, "turn": claimed.turn}
    own = list(
        await connection.execute(
            text(
                "select id, role, text, citations::text as citations, place from message"
                " where tenant_id = :tenant and conversation_id = :conversation and turn = :turn order by place"
            ),
            key,
        )
    )
    steps = await checkpoints(connection, identity)
    answered = await connection.execute(
        text(
            "select call, round, decision, note from approval"
            " where tenant_id = :tenant and run_id = :run and decision is not null"
        ),
        {"tenant": identity.tenant_id, "run": identity.run_id},
    )
    question = next((row for row in own if row.place == 0), None)
    if question is None:
        raise UnreadableError("no message of its turn is there")
    try:
        said = await history(connection, identity.tenant_id, identity.conversation_id, claimed.turn)
        said += [stored_message(row) for row in own if row.place < 0]
        asked = stored_message(question)
    except msgspec.MsgspecError as error:
        raise UnreadableError("citations of its conversation") from error
    found = RunContext(
        run_id=identity.run_id,
        tenant_id=identity.tenant_id,
        user=identity.user,
        agent_id=identity.agent_id,
        agent_version=identity.agent_version,
        spec=claimed.spec,
        conversation_id=identity.conversation_id,
        epoch=identity.epoch,
        history=tuple(said),
        input=asked,
        checkpoints=steps,
        deadline=now() + timedelta(seconds=claimed.spec.limits.seconds - claimed.running_for),
        answered=tuple(Answered(row.call, row.round, row.decision, row.note) for row in answered),
    )
    return found, int(own[-1].place) + 1


async def history(
    connection: AsyncConnection, tenant_id: str, conversation_id: str, turn: int
) -> list[StoredMessage]:
    """What a run of this turn is given of what was said before the turn. Any role.

    Raises: msgspec.MsgspecError.
    """
    rows = await connection.execute(
        _HISTORY, {"tenant": tenant_id, "conversation": conversation_id, "turn": turn, "limit": HISTORY}
    )
    return [stored_message(row) for row in rows]


async def checkpoints(connection: AsyncConnection, run: Identity) -> tuple[Checkpoint, ...]:
    """Those of an open run, in order: they go with its end."""
    rows = await connection.execute(
        text(
            "select step, kind, payload from checkpoint where tenant_id = :tenant and run_id = :run order by step"
        ),
        {"tenant": run.tenant_id, "run": run.run_id},
    )
    return tuple(Checkpoint(row.step, row.kind, bytes(row.payload)) for row in rows)


async def give_back(connection: AsyncConnection, runs: Sequence[Identity]) -> None:
    """Let others go on with these runs at once, and wake them."""
    rows = await connection.execute(
        text(
            """
            update run r set lease_until = '-infinity', owner = '', stalls = r.stalls - 1
            from unnest(cast(:runs as text[]), cast(:epochs as int[])) as w (id, epoch)
            where r.id = w.id and r.epoch = w.epoch and r.status = 'running' returning r.id
            """
        ),
        {"runs": [run.run_id for run in runs], "epochs": [run.epoch for run in runs]},
    )
    given = {row[0] for row in rows}
    for run in runs:
        if run.run_id in given:
            await enqueue(connection, [wake_up(run)], run.tenant_id)


def wake_up(run: Identity) -> NewRecord:
    """The record of `agent.tasks` that makes some instance look for runs."""
    task = AgentTask(run=run.run_id, tenant=run.tenant_id, conversation=run.conversation_id)
    return NewRecord(TASKS, task.key, task.encode())


async def waiting(connection: AsyncConnection) -> tuple[int, float]:
    """How many queued runs an instance could take, and for how long the oldest could have been taken (seconds):
    the time in which it waited for a person or for an earlier turn does not count."""
    row = (
        await connection.execute(
            text(
                "select count(*), coalesce(max(extract(epoch from clock_timestamp() - greatest(r.created_at,"
                " (select max(a.decided_at) from approval a where a.tenant_id = r.tenant_id and a.run_id = r.id),"
                " (select max(e.ended_at) from run e where e.tenant_id = r.tenant_id"
                " and e.conversation_id = r.conversation_id and e.turn < r.turn)))), 0)"
                f" from run r where r.status = 'queued' and {_FIRST}"
            )
        )
    ).one()
    return int(row[0]), float(row[1])


def stored_message(row: Row[Any]) -> StoredMessage:
    citations = msgspec.json.decode(row.citations, type=tuple[Citation, ...])
    return StoredMessage(row.id, row.role, row.text, citations)


def _claimed(row: Row[Any]) -> Claimed:
    identity = Identity(
        run_id=row.id,
        tenant_id=row.tenant_id,
        user=row.user_id,
        agent_id=row.agent_id,
        agent_version=row.agent_version,
        conversation_id=row.conversation_id,
        epoch=row.epoch,
        traceparent=row.traceparent,
    )
    return Claimed(
        identity=identity,
        turn=row.turn,
        spec=stored_spec(row.spec),
        stalls=row.stalls,
        last_seq=row.last_seq,
        safe_seq=row.safe_seq,
        steps=row.steps,
        cancel_by=row.cancel_by,
        running_for=max(0.0, float(row.running_for)),
        taken_over=row.found == "running",
        totals=totals_of(row),
    )
