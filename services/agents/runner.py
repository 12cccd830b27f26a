"""Executes runs: takes them by lease, keeps the lease, ends each with one terminal event (law 7).

The loop itself is a parameter (`Execute`); what is here is what must hold whatever the loop does: an
instance that dies is replaced within the lease, one that was frozen changes nothing when it comes back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec
from opentelemetry import trace
from prometheus_client import Gauge
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from core import telemetry
from core.database import Database
from core.log import Logger
from core.messaging.trace import trace_context
from core.tasks import cancel
from services.agents import decisions, leases
from services.agents.journal import FencedError, Journal
from services.agents.leases import Claimed, UnreadableError
from services.agents.model import Outcome, RunContext
from services.agents.notes import RunJournal
from services.agents.recorder import Recorder
from services.agents.saved import restored, totals
from services.common.token_window import window_name

Execute = Callable[[RunContext, Journal], Awaitable[Outcome]]
"""Goes on with a run from its context until it ends or must wait for a person. May raise FencedError; any other error fails the run."""

Settle = Callable[[str, int], Awaitable[None]]
"""Counts tokens in the window of the tokens a minute of this name. Never raises."""

MAX_STALLS: Final = 3
"""Takeovers without a checkpoint between them after which a run fails: it may be what kills its instances."""
CANCEL_GRACE: Final = 5.0
_DEADLINE_GRACE: Final = 1.0
_DRAIN_SECONDS: Final = 5.0
_AWAY = (DBAPIError, OSError, TimeoutError, PoolTimeoutError)

IN_FLIGHT = Gauge("agent_runs_in_flight", "Runs that this process executes")
QUEUED = Gauge("agent_runs_queued", "Runs that wait for an instance")
QUEUED_SECONDS = Gauge("agent_runs_queued_seconds", "Age of the run that waits longest")

_log = Logger("agents.runner")
_tracer = trace.get_tracer("headrace.agents")

_Reason = Literal["lost", "cancel", "deadline", "drain"]


class Runner:
    """Executes runs until `drain()`.

    Args:
        database: role `system`.
        execute: the loop.
        instance: name of this process in `run.started` and in the run's row.
        capacity: most runs at once.
        lease_seconds: an instance that is silent for so long loses its runs.
        renew_seconds: how often leases are renewed, a third of the lease.
        poll_seconds: looks for runs this often without being woken, for wake-ups that were lost.
        settle: is told what a run used when it waits for a person, who may never answer, and what came after
            that when it ends, whoever ended it.
    """

    def __init__(
        self,
        database: Database,
        execute: Execute,
        *,
        instance: str,
        capacity: int = 24,
        lease_seconds: float = 6.0,
        renew_seconds: float = 2.0,
        poll_seconds: float = 2.0,
        settle: Settle | None = None,
    ) -> None:
        self._database, self._execute, self._instance = database, execute, instance
        self._settle = settle
        self._capacity, self._lease = capacity, lease_seconds
        self._renew, self._poll = renew_seconds, poll_seconds
        self._recorder = Recorder(database)
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._woken = asyncio.Event()
        self._draining = asyncio.Event()
        self.trouble = ""
        """What the last look for runs failed with; empty while all is well."""
        IN_FLIGHT.set_function(lambda: len(self._running))

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def wake(self) -> None:
        """There may be runs to take."""
        self._woken.set()

    def cancel(self, run_id: str, by: str) -> None:
        """Tell a run that it should end, where it is executed here. The row says so too."""
        for running in self._running.values():
            if running.journal is not None and running.journal.identity.run_id == run_id:
                running.journal.cancel(by)

    async def run(self) -> None:
        """Work until `drain` has been called and every run is handed over."""
        recording = asyncio.create_task(self._recorder.run(), name="recorder")
        background = [
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._measure(), name="queued-runs"),
            asyncio.create_task(self._expire(), name="unanswered"),
        ]
        try:
            while not self._draining.is_set():
                self._woken.clear()
                await self._take()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await self._woken.wait()
            await self._hand_over()
        finally:
            await cancel(*background, *self._running)
            self._recorder.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await recording
            await cancel(recording)

    def drain(self) -> None:
        """Take no more runs and hand those at hand over to other instances at once; ends `run`."""
        self._draining.set()
        self._woken.set()

    async def _take(self) -> None:
        free = self._capacity - len(self._running)
        if free <= 0:
            return
        try:
            async with self._database.writer() as connection:
                claimed = await leases.claim(
                    connection, instance=self._instance, lease_seconds=self._lease, limit=free
                )
            self.trouble = ""
        except _AWAY as error:
            self.trouble = type(error).__name__
            _log.warn("cannot look for runs", error=self.trouble)
            return
        for one in claimed:
            running = _Running(
                self._recorder, self._database, self._execute, self._settle, self._instance, one
            )
            task = asyncio.create_task(running.run(), name=one.identity.run_id)
            self._running[task] = running
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a run was left to its lease", run=task.get_name(), exc=error)
        # Its conversation may have a next one, and there is room again.
        self._woken.set()

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._renew)
            try:
                await self._recorder.renew(self._lease)
            except _AWAY as error:
                _log.warn("leases not renewed", error=type(error).__name__)

    async def _measure(self) -> None:
        while True:
            with suppress(*_AWAY):
                async with self._database.reader() as connection:
                    count, oldest = await leases.waiting(connection)
                QUEUED.set(count)
                QUEUED_SECONDS.set(oldest)
            await asyncio.sleep(5)

    async def _expire(self) -> None:
        """Let runs go on whose question nobody answered in time."""
        while True:
            try:
                async with self._database.writer() as connection:
                    while await decisions.expire(connection):
                        self._woken.set()
            except _AWAY as error:
                _log.warn("questions not ended", error=type(error).__name__)
            await asyncio.sleep(self._poll)

    async def _hand_over(self) -> None:
        held = dict(self._running)
        for running in held.values():
            running.stop("drain")
        if held:
            await asyncio.wait(held, timeout=_DRAIN_SECONDS)
        left = [running.claimed.identity for running in held.values() if running.unfinished]
        if not left:
            return
        try:
            async with self._database.writer() as connection:
                await leases.give_back(connection, left)
            _log.info("runs handed over", runs=len(left))
        except _AWAY as error:
            _log.warn("leases not given back; they end by themselves", error=type(error).__name__)


class _Running:
    """One execution of one run."""

    def __init__(
        self,
        recorder: Recorder,
        database: Database,
        execute: Execute,
        settle: Settle | None,
        instance: str,
        claimed: Claimed,
    ) -> None:
        self._recorder, self._database, self._execute = recorder, database, execute
        self._settle, self._instance, self.claimed = settle, instance, claimed
        self._stopped: asyncio.Future[_Reason] = asyncio.get_running_loop().create_future()
        self.journal: RunJournal | None = None
        self.unfinished = True
        """False once the terminal event is durable, or the run another's."""

    def stop(self, reason: _Reason) -> None:
        if not self._stopped.done():
            self._stopped.set_result(reason)

    async def run(self) -> None:
        claimed, began = self.claimed, time.monotonic()
        identity = claimed.identity
        parent = trace_context((("traceparent", identity.traceparent.encode()),))
        with _tracer.start_as_current_span(
            "agent run", context=parent, attributes={"headrace.run": identity.run_id, "headrace.epoch": identity.epoch}
        ):  # fmt: skip
            context, place = await self._context()
            journal = RunJournal(
                identity, seq=claimed.last_seq, steps=claimed.steps, place=place, wake=self._recorder.wake
            )
            self.journal = journal
            self._recorder.open(journal)
            try:
                outcome = await self._until_ended(context, journal)
                if outcome is None:
                    return
                await self._end(journal, outcome)
            except FencedError:
                self.unfinished = False
                _log.info("run is another's now", run=identity.run_id, epoch=identity.epoch)
            else:
                self.unfinished = False
                if self._settle is not None:  # only now: where the run was another's, that one tells it
                    used = outcome.totals.tokens - claimed.totals.tokens
                    await self._settle(window_name(identity.tenant_id, identity.user), used)
                if outcome.status == "waiting":
                    _log.info("run waits for a person", run=identity.run_id, seq=journal.seq)
                    return
                took = claimed.running_for + time.monotonic() - began
                telemetry.AGENT_RUN_DURATION.labels(outcome.status).observe(took)
                _log.info(
                    "run ended", run=identity.run_id, status=outcome.status, code=outcome.error_code,
                    seconds=round(took, 3), seq=journal.seq,
                )  # fmt: skip
            finally:
                self._recorder.close(journal)

    async def _context(self) -> tuple[RunContext | None, int]:
        """Where the run stands; None where that cannot be read."""
        try:
            async with self._database.writer() as connection:
                return await leases.context(connection, self.claimed)
        except UnreadableError as error:
            _log.error("a run cannot be read", run=self.claimed.identity.run_id, exc=error)
            return None, 1

    async def _until_ended(self, context: RunContext | None, journal: RunJournal) -> Outcome | None:
        """What the execution came to; None where the run goes on elsewhere."""
        claimed = self.claimed
        if claimed.taken_over:
            journal.note(
                "run.takeover",
                {
                    "old_epoch": claimed.identity.epoch - 1,
                    "new_epoch": claimed.identity.epoch,
                    "resumed_from": claimed.steps,
                    "discard_after_seq": claimed.safe_seq,
                },
            )
        elif claimed.identity.epoch == 1:
            journal.note(
                "run.started",
                {"instance": self._instance, "model": claimed.spec.model if claimed.spec else ""},
            )
        if claimed.cancel_by is not None:
            journal.cancel(claimed.cancel_by)
            return await self._ending(journal, status="cancelled")
        if context is None:
            return await self._ending(
                journal,
                status="failed",
                error_code="run_unreadable",
                error_message="What is stored of the run cannot be read by this version; ask again.",
            )
        if claimed.stalls > MAX_STALLS:
            return await self._ending(
                journal,
                status="failed",
                error_code="run_stalled",
                error_message=f"The run was taken over {claimed.stalls} times without getting further.",
            )
        return await self._supervise(context, journal)

    async def _supervise(self, context: RunContext, journal: RunJournal) -> Outcome | None:
        work = asyncio.ensure_future(self._execute(context, journal))
        watching = [
            asyncio.create_task(self._when(journal.lost, 0, "lost")),
            asyncio.create_task(self._when(journal.cancelled, CANCEL_GRACE, "cancel")),
        ]
        left = context.spec.limits.seconds - self.claimed.running_for
        deadline = asyncio.get_running_loop().call_later(
            max(0.0, left) + _DEADLINE_GRACE, self.stop, "deadline"
        )
        try:
            either: list[asyncio.Future[Any]] = [work, self._stopped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            by_itself = work.done()
        finally:
            deadline.cancel()
            await cancel(work, *watching)
        # Only now: while it is cancelled, a loop still saves what it owes.
        if by_itself:
            return await self._outcome(work, journal)
        return await self._stopped_outcome(self._stopped.result(), context, journal)

    async def _when(self, event: asyncio.Event, grace: float, reason: _Reason) -> None:
        await event.wait()
        await asyncio.sleep(grace)
        self.stop(reason)

    async def _outcome(self, work: "asyncio.Future[Outcome]", journal: RunJournal) -> Outcome:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None:
            return work.result()
        if isinstance(error, FencedError):
            raise error
        _log.error("the loop failed", run=self.claimed.identity.run_id, exc=error)
        return await self._ending(
            journal,
            status="failed",
            error_code="internal_error",
            error_message="The run failed on our side; start it again.",
            retryable=True,
        )

    async def _stopped_outcome(
        self, reason: _Reason, context: RunContext, journal: RunJournal
    ) -> Outcome | None:
        if reason == "cancel":
            return await self._ending(journal, status="cancelled")
        if reason == "deadline":
            seconds = context.spec.limits.seconds
            return await self._ending(
                journal,
                status="failed",
                error_code="limit_seconds",
                error_message=f"The run did not end within {seconds} s; raise `limits.seconds` or ask for less.",
            )
        if reason == "lost":
            raise FencedError(self.claimed.identity.run_id)
        return None

    async def _ending(self, journal: RunJournal, **fields: Any) -> Outcome:
        """One that the loop did not make: with what the run has used by its checkpoints.

        Raises: FencedError, and as `Database.writer`; whoever has the run next ends it then.
        """
        with suppress(ValueError, DBAPIError):  # what cannot be stored is not metered either
            await journal.flush()
        async with self._database.writer() as connection:
            stored = await leases.checkpoints(connection, journal.identity)
        try:
            used = totals(map(restored, stored))
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("what a run has used cannot be read", run=journal.identity.run_id, exc=error)
            used = self.claimed.totals
        return Outcome(totals=used, **fields)

    async def _end(self, journal: RunJournal, outcome: Outcome) -> None:
        try:
            await journal.end(outcome)
        except (ValueError, DBAPIError) as error:
            # What it wanted to store is refused; that it ended must be said all the same.
            _log.error("the answer cannot be stored", run=journal.identity.run_id, exc=error)
            await journal.end(
                Outcome(
                    status="failed",
                    error_code="answer_not_storable",
                    error_message="The answer cannot be stored.",
                    totals=outcome.totals,
                )
            )
