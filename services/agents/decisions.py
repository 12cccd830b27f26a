"""What people are asked about calls of tools, and decide: the question ends, the run goes on. SQL on the
caller's transaction, role `app`; what nobody answers in time is ended by role `system`.

A decision is taken under the lock of the run's row, so there is one; its event is the run's next.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.contracts.run_events import Decision, Reason
from core.messaging.outbox import enqueue
from services.agents.leases import wake_up
from services.agents.store import RUN, Run, identity_of, one, run_of
from services.common.errors import Problem, not_found

_CLOCK: Final = "agents"
"""Who decides where nobody does, in the audit log."""
_BATCH: Final = 50


@dataclass(frozen=True, slots=True)
class Approval:
    """A question about one call. `late`: it stands open beyond its time."""

    run_id: str
    call: str
    round: int
    tool: str
    arguments: str
    reason: Reason
    requested_at: datetime
    expires_at: datetime
    decision: Decision | None
    decided_by: str
    note: str
    decided_at: datetime | None
    late: bool


_APPROVAL: Final = (
    "select a.run_id, a.call, a.round, a.tool, a.arguments, a.reason, a.requested_at, a.expires_at, a.decision,"
    " a.decided_by, a.note, a.decided_at, a.decision is null and a.expires_at <= clock_timestamp() as late"
    " from approval a where a.run_id = :run"
)


async def of_run(connection: AsyncConnection, run_id: str) -> list[Approval]:
    """All questions of a run that the caller has seen, in the order they were asked."""
    rows = await connection.execute(
        text(f"{_APPROVAL} order by a.requested_at, a.call, a.round"), {"run": run_id}
    )
    return [_approval(row) for row in rows]


async def open_of(connection: AsyncConnection, run_id: str) -> Approval | None:
    """What the run waits for."""
    row = await one(connection, f"{_APPROVAL} and a.decision is null", run=run_id)
    return None if row is None else _approval(row)


async def decide(
    connection: AsyncConnection, run: Run, call: str, round: int, *, decision: Decision, by: str, note: str
) -> Approval:
    """Answer a question of a locked run. The same answer again changes nothing.

    Raises:
        Problem: 404 where this was not asked, 409 `approval_asked_again` where it has an answer and the call
            is asked about anew, 409 `approval_resolved` where it has another answer.
    """
    key = {"run": run.id, "call": call, "round": round}
    row = await one(connection, f"{_APPROVAL} and a.call = :call and a.round = :round", **key)
    if row is None:
        raise not_found("approval")
    asked = _approval(row)
    if asked.decision is not None:
        await _check_latest(connection, asked)
    if asked.decision == decision:
        return asked
    if asked.decision is not None or asked.late or run.status != "waiting":
        found = asked.decision or ("expired" if asked.late else "cancelled")
        raise Problem(
            409,
            "approval_resolved",
            "It is decided already",
            f"The question about {call} has the answer `{found}`, which does not change; look at the run.",
        )
    await _resolve(connection, run, asked, decision, by, note, goes_on=True)
    row = await one(connection, f"{_APPROVAL} and a.call = :call and a.round = :round", **key)
    assert row is not None, "answered in this transaction"
    return _approval(row)


async def _check_latest(connection: AsyncConnection, asked: Approval) -> None:
    """Whoever names no round, or an old one, must not believe that they have answered the open question."""
    stands = await open_of(connection, asked.run_id)
    if stands is not None and stands.call == asked.call:
        raise Problem(
            409,
            "approval_asked_again",
            "It is asked about again",
            f"The question about {asked.call} of round {asked.round} has the answer `{asked.decision}`; the call was "
            f"interrupted since and may have happened. To answer what the run waits for, send `round` {stands.round}.",
        )


async def withdraw(connection: AsyncConnection, run: Run, by: str) -> Run:
    """End the question of a locked run that waits and is about to be cancelled; the run as it is then."""
    asked = await open_of(connection, run.id)
    assert asked is not None, "a run that waits has a question"
    return await _resolve(connection, run, asked, "cancelled", by, "", goes_on=False)


async def expire(connection: AsyncConnection) -> bool:
    """End questions that stand beyond their time, some of them; False where there is none. Role `system`."""
    rows = await connection.execute(
        text(
            f"select {RUN} from approval a join run r on r.tenant_id = a.tenant_id and r.id = a.run_id"
            " where a.decision is null and a.expires_at <= clock_timestamp() and r.status = 'waiting'"
            " order by a.expires_at limit :limit for update of r skip locked"
        ),
        {"limit": _BATCH},
    )
    found = [run_of(row) for row in rows]
    for run in found:
        asked = await open_of(connection, run.id)
        if asked is not None:
            await _resolve(connection, run, asked, "expired", _CLOCK, "", goes_on=True)
    return len(found) == _BATCH


async def _resolve(
    connection: AsyncConnection,
    run: Run,
    asked: Approval,
    decision: Decision,
    by: str,
    note: str,
    *,
    goes_on: bool,
) -> Run:
    key = {"tenant": run.tenant_id, "run": run.id}
    await connection.execute(
        text(
            "update approval set decision = :decision, decided_by = :by, note = :note, decided_at = clock_timestamp()"
            " where tenant_id = :tenant and run_id = :run and call = :call and round = :round"
        ),
        {**key, "call": asked.call, "round": asked.round, "decision": decision, "by": by, "note": note},
    )
    row = await one(
        connection,
        "update run r set status = case when :goes_on then 'queued' else r.status end, last_seq = last_seq + 1,"
        " safe_seq = last_seq + 1, waited = waited + (clock_timestamp() - waiting_since), waiting_since = null"
        f" where r.tenant_id = :tenant and r.id = :run returning {RUN}",
        **key,
        goes_on=goes_on,
    )
    assert row is not None, "locked by this transaction"
    changed = run_of(row)
    identity = identity_of(changed)
    told = {"call": asked.call, "round": asked.round, "decision": decision, "by": by}
    records = [identity.record(changed.last_seq, 0, "approval.resolved", told)]
    await enqueue(connection, [*records, *([wake_up(identity)] if goes_on else [])], run.tenant_id)
    await audit.record(
        connection,
        action="approval.resolve",
        actor=by,
        tenant_id=run.tenant_id,
        target=run.id,
        outcome="success",
        detail={"call": asked.call, "tool": asked.tool, "decision": decision, "round": str(asked.round)},
    )
    return changed


def _approval(row: Row[Any]) -> Approval:
    return Approval(**row._mapping)
