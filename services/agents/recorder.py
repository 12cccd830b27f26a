"""Writes what the runs of this process note: one transaction a tick, fenced run by run (docs/adr/0006)."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import Database
from core.eventlog.headers import encode
from core.log import Logger
from core.messaging.outbox import CHANNEL
from services.agents.journal import FencedError
from services.agents.model import Outcome
from services.agents.notes import RunJournal, Write

TICK: Final = 0.025
_LAST_PAUSE: Final = 1.0
_log = Logger("agents.recorder")

# One statement: only rows that are still ours change, and only for those the rest is stored.
_STORE: Final = text(
    """
    with wanted as (
        select * from unnest(cast(:runs as text[]), cast(:epochs as int[]), cast(:before as int[]), cast(:seqs as int[]),
                             cast(:safe as int[]), cast(:steps_before as int[]), cast(:steps as int[]))
             as w (id, epoch, before, seq, safe, steps_before, steps)
    ), mine as (
        update run r set last_seq = w.seq, safe_seq = coalesce(w.safe, r.safe_seq), steps = w.steps,
               stalls = case when w.safe is null then r.stalls else 0 end
        from wanted w
        where r.id = w.id and r.epoch = w.epoch and r.status = 'running' and r.last_seq = w.before
          and r.steps = w.steps_before
        returning r.tenant_id, r.id, r.epoch, r.conversation_id, r.turn
    ), records as (
        insert into outbox (tenant_id, topic, key, value, headers)
        select m.tenant_id, e.topic, e.key, e.value, e.headers
        from unnest(cast(:record_runs as text[]), cast(:topics as text[]), cast(:keys as bytea[]),
                    cast(:values as bytea[]), cast(:headers as bytea[]))
             with ordinality as e (run, topic, key, value, headers, position)
        join mine m on m.id = e.run order by e.position
    ), checkpoints as (
        insert into checkpoint (tenant_id, run_id, step, kind, payload, epoch)
        select m.tenant_id, m.id, c.step, c.kind, c.payload, m.epoch
        from unnest(cast(:checkpoint_runs as text[]), cast(:checkpoint_steps as int[]), cast(:kinds as text[]),
                    cast(:payloads as bytea[])) as c (run, step, kind, payload)
        join mine m on m.id = c.run
    ), messages as (
        insert into message (tenant_id, id, conversation_id, run_id, turn, place, role, text, citations)
        select m.tenant_id, n.id, m.conversation_id, m.id, m.turn, n.place, n.role, n.text, cast(n.citations as jsonb)
        from unnest(cast(:message_runs as text[]), cast(:message_ids as text[]), cast(:places as int[]),
                    cast(:roles as text[]), cast(:texts as text[]), cast(:citations as text[]))
             as n (run, id, place, role, text, citations)
        join mine m on m.id = n.run
    )
    select id, pg_notify(:channel, '') from mine
    """
)
_END: Final = text(
    """
    with ended as (
        update run r set status = o.status, owner = '', lease_until = null, ended_at = clock_timestamp(),
               message_id = o.message, input_tokens = o.input, output_tokens = o.output,
               cached_tokens = o.cached, reasoning_tokens = o.reasoning, requests = o.requests,
               tool_calls = o.tool_calls, error_code = o.code, error_message = o.error, retryable = o.retryable,
               provider = o.provider
        from unnest(cast(:runs as text[]), cast(:statuses as text[]), cast(:messages as text[]),
                    cast(:input as bigint[]), cast(:output as bigint[]), cast(:cached as bigint[]),
                    cast(:reasoning as bigint[]), cast(:requests as int[]), cast(:tool_calls as int[]), cast(:codes as text[]),
                    cast(:errors as text[]), cast(:retryable as boolean[]), cast(:providers as text[]))
             as o (id, status, message, input, output, cached, reasoning, requests, tool_calls, code, error, retryable, provider)
        where r.id = o.id returning r.tenant_id, r.id, r.conversation_id
    ), forgotten as (
        delete from checkpoint c using ended e where c.tenant_id = e.tenant_id and c.run_id = e.id
    ), unanswered as (
        update approval a set decision = 'cancelled', decided_at = clock_timestamp() from ended e
        where a.tenant_id = e.tenant_id and a.run_id = e.id and a.decision is null
    )
    update conversation c set updated_at = now() from (
        -- Whoever holds it numbers a turn, names it or deletes it, and may be waiting for this run.
        select l.tenant_id, l.id from conversation l join ended e on l.tenant_id = e.tenant_id and l.id = e.conversation_id
        for no key update of l skip locked
    ) free
    where c.tenant_id = free.tenant_id and c.id = free.id
    """
)
# One that somebody wants to end meanwhile is queued instead: whoever takes it ends it.
_WAIT: Final = text(
    """
    with asked as (
        select * from unnest(cast(:runs as text[]), cast(:calls as text[]), cast(:rounds as int[]),
                             cast(:tools as text[]), cast(:arguments as text[]), cast(:reasons as text[]),
                             cast(:expires as timestamptz[]), cast(:input as bigint[]), cast(:output as bigint[]),
                             cast(:cached as bigint[]), cast(:reasoning as bigint[]), cast(:requests as int[]),
                             cast(:tool_calls as int[]))
             as q (run, call, round, tool, arguments, reason, expires, input, output, cached, reasoning, requests,
                   tool_calls)
    ), waiting as (
        update run r set status = case when r.cancel_by is null then 'waiting' else 'queued' end, owner = '',
               lease_until = null, waiting_since = clock_timestamp(), input_tokens = q.input,
               output_tokens = q.output, cached_tokens = q.cached, reasoning_tokens = q.reasoning,
               requests = q.requests, tool_calls = q.tool_calls
        from asked q where r.id = q.run returning r.tenant_id, r.id
    )
    insert into approval (tenant_id, run_id, call, round, tool, arguments, reason, expires_at)
    select w.tenant_id, w.id, q.call, q.round, q.tool, q.arguments, q.reason, q.expires
    from asked q join waiting w on w.id = q.run
    """
)
_RENEW: Final = text(
    """
    update run r set lease_until = clock_timestamp() + cast(:lease as float8) * interval '1 second'
    from unnest(cast(:runs as text[]), cast(:epochs as int[])) as w (id, epoch)
    where r.id = w.id and r.epoch = w.epoch and r.status = 'running' returning r.id, r.cancel_by
    """
)


class Recorder:
    """All journals of one process. `run` writes until `stop`; `open` begins with a run, `close` ends.

    Args:
        database: role `system`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._journals: dict[str, RunJournal] = {}
        self._noted, self._awaited = asyncio.Event(), asyncio.Event()
        # Several rows of `run` change at once here: two such statements at a time could deadlock.
        self._writing = asyncio.Lock()
        self._stopping = False

    def wake(self, awaited: bool) -> None:
        """Something was noted; `awaited` where somebody waits until it is durable."""
        self._noted.set()
        if awaited:
            self._awaited.set()

    def open(self, journal: RunJournal) -> None:
        """One of an earlier epoch, whose lease ended while this process could not renew it, is lost."""
        before = self._journals.get(journal.identity.run_id)
        self._journals[journal.identity.run_id] = journal
        if before is not None:
            before.lose()

    def close(self, journal: RunJournal) -> None:
        if self._journals.get(journal.identity.run_id) is journal:
            del self._journals[journal.identity.run_id]

    async def run(self) -> None:
        """Write until `stop()`, then what is left once more."""
        last = 0.0
        while not self._stopping:
            await self._noted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, last + TICK - time.monotonic())):
                    await self._awaited.wait()
            self._noted.clear()
            self._awaited.clear()
            last = time.monotonic()
            await self.tick()
        await self.tick()

    def stop(self) -> None:
        self._stopping = True
        self.wake(True)

    async def tick(self) -> None:
        """Write what all journals hold now, however often the database must be asked."""
        async with self._writing:
            taken = [journal.take() for journal in self._journals.values()]
            writes = [write for write in taken if write is not None and _numbered(write)]
            pause, again = 0.05, False
            while writes:
                try:
                    await self._store(writes, again=again)
                    return
                except (DBAPIError, OSError, TimeoutError, PoolTimeoutError) as error:
                    if _is_refused(error):
                        await self._one_by_one(writes, error, again=again)
                        return
                    # Whether it was committed is not known: the same rows are asked for again.
                    again = True
                    _log.warn("events wait for the database", error=type(error).__name__, runs=len(writes))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_PAUSE)

    async def renew(self, lease_seconds: float) -> None:
        """Extend the leases of all journals; those that are another's are lost, the cancelled hear it.

        Raises: as `Database.writer`.
        """
        async with self._writing:
            held = dict(self._journals)
            if not held:
                return
            epochs = [journal.identity.epoch for journal in held.values()]
            async with self._database.writer() as connection:
                rows = await connection.execute(
                    _RENEW, {"lease": lease_seconds, "runs": list(held), "epochs": epochs}
                )
                kept = {row[0]: row[1] for row in rows}
        for run_id, journal in held.items():
            if run_id not in kept:
                # One that ended in the meantime has left by itself.
                if self._journals.get(run_id) is journal:
                    journal.lose()
            elif kept[run_id] is not None:
                journal.cancel(kept[run_id])

    async def _store(self, writes: Sequence[Write], *, again: bool) -> None:
        async with self._database.writer() as connection:
            stored = {row[0] for row in await connection.execute(_STORE, _parameters(writes))}
            missing = [write for write in writes if write.journal.identity.run_id not in stored]
            over = [write for write in writes if write.outcome and write not in missing]
            if ended := [write for write in over if write.outcome and write.outcome.question is None]:
                await connection.execute(_END, _endings(ended))
            if len(ended) < len(over):
                await connection.execute(_WAIT, _questions(over))
            before = await _stored_before(connection, missing) if again and missing else frozenset[str]()
        for write in writes:
            if write.journal.identity.run_id in stored | before:
                write.done()
            else:
                write.resolve(FencedError(write.journal.identity.run_id))
                write.journal.lose()

    async def _one_by_one(self, writes: Sequence[Write], error: Exception, *, again: bool) -> None:
        """The database refuses one of these: find which, so that it fails alone."""
        for write in writes:
            try:
                if len(writes) == 1:
                    raise error
                await self._store([write], again=again)
            except (DBAPIError, OSError, TimeoutError, PoolTimeoutError) as refused:
                _log.error("events refused", run=write.journal.identity.run_id, exc=refused)
                write.journal.forget()
                write.resolve(refused)


def _numbered(write: Write) -> bool:
    try:
        write.number()
    except ValueError as error:
        _log.error("events cannot be written", run=write.journal.identity.run_id, error=str(error))
        write.journal.forget()
        write.resolve(error)
        return False
    return True


def _parameters(writes: Sequence[Write]) -> dict[str, object]:
    records = [(write.journal.identity.run_id, record) for write in writes for record in write.records]
    checkpoints = [(write.journal.identity.run_id, *one) for write in writes for one in write.checkpoints]
    messages = [(write.journal.identity.run_id, *one) for write in writes for one in write.messages]
    return {
        "runs": [write.journal.identity.run_id for write in writes],
        "epochs": [write.journal.identity.epoch for write in writes],
        "before": [write.previous_seq for write in writes],
        "seqs": [write.seq for write in writes],
        "safe": [write.safe_seq for write in writes],
        "steps_before": [write.previous_steps for write in writes],
        "steps": [write.steps for write in writes],
        "record_runs": [run for run, _ in records],
        "topics": [record.topic for _, record in records],
        "keys": [record.key for _, record in records],
        "values": [record.value for _, record in records],
        "headers": [encode(record.headers) for _, record in records],
        "checkpoint_runs": [one[0] for one in checkpoints],
        "checkpoint_steps": [one[1] for one in checkpoints],
        "kinds": [one[2] for one in checkpoints],
        "payloads": [one[3] for one in checkpoints],
        "message_runs": [one[0] for one in messages],
        "places": [one[1] for one in messages],
        "message_ids": [one[2].id for one in messages],
        "roles": [one[2].role for one in messages],
        "texts": [one[2].text for one in messages],
        "citations": [msgspec.json.encode(one[2].citations).decode() for one in messages],
        "channel": CHANNEL,
    }


def _endings(writes: Sequence[Write]) -> dict[str, object]:
    ended = [(write.journal.identity.run_id, write.outcome) for write in writes if write.outcome is not None]
    return {
        "runs": [run for run, _ in ended],
        "statuses": [outcome.status for _, outcome in ended],
        "messages": [outcome.message_id for _, outcome in ended],
        **_totals([outcome for _, outcome in ended]),
        "codes": [outcome.error_code for _, outcome in ended],
        "errors": [outcome.error_message for _, outcome in ended],
        "retryable": [outcome.retryable for _, outcome in ended],
        "providers": [outcome.provider for _, outcome in ended],
    }


def _questions(writes: Sequence[Write]) -> dict[str, object]:
    asked = [
        (write.journal.identity.run_id, write.outcome, write.outcome.question)
        for write in writes
        if write.outcome is not None and write.outcome.question is not None
    ]
    return {
        "runs": [run for run, _, _ in asked],
        "calls": [question.call for _, _, question in asked],
        "rounds": [question.round for _, _, question in asked],
        "tools": [question.tool for _, _, question in asked],
        "arguments": [question.arguments for _, _, question in asked],
        "reasons": [question.reason for _, _, question in asked],
        "expires": [question.expires for _, _, question in asked],
        **_totals([outcome for _, outcome, _ in asked]),
    }


def _totals(outcomes: Sequence[Outcome]) -> dict[str, object]:
    found = [outcome.totals for outcome in outcomes]
    return {
        "input": [one.input_tokens for one in found],
        "output": [one.output_tokens for one in found],
        "cached": [one.cached_tokens for one in found],
        "reasoning": [one.reasoning_tokens for one in found],
        "requests": [one.requests for one in found],
        "tool_calls": [one.tool_calls for one in found],
    }


async def _stored_before(connection: AsyncConnection, writes: Sequence[Write]) -> frozenset[str]:
    """Those of `writes` that an earlier attempt stored although its answer was lost."""
    rows = await connection.execute(
        text("select id, epoch, last_seq, steps, status from run where id = any(cast(:runs as text[]))"),
        {"runs": [write.journal.identity.run_id for write in writes]},
    )
    found = {row[0]: tuple(row[1:]) for row in rows}
    return frozenset(
        write.journal.identity.run_id
        for write in writes
        if found.get(write.journal.identity.run_id)
        == (
            write.journal.identity.epoch,
            write.seq,
            write.steps,
            "running" if write.outcome is None else write.outcome.status,
        )
    )


def _is_refused(error: Exception) -> bool:
    """True for what would be refused again: bad data or a broken rule, as opposed to a server that is
    away, busy or chose us in a deadlock."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    state = str(getattr(error.orig, "sqlstate", "") or "")
    if not state and isinstance(error, (OperationalError, InterfaceError)):
        return False
    return not state.startswith(("08", "40", "53", "55", "57")) and state != "25006"
