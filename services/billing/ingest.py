"""Usage coming in: a batch is in the outbox, in one statement, before it is answered."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from prometheus_client import Counter as Metric
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from core import audit
from core.clock import now
from core.contracts.usage import Reference, UsageEvent, UsageRecord
from core.database import Database, tenant
from core.eventlog.api import NewRecord
from core.log import Logger
from core.messaging.outbox import enqueue
from services.billing import replacement_store, schemas, store
from services.billing.live import TOPIC
from services.billing.store import Import
from services.billing.tenants import own_tenant
from services.billing.verdicts import Batch, check_times, read_batch, void_of
from services.common.auth import Principal
from services.common.errors import Problem, invalid, not_found
from services.common.idempotency import Answer, Repeatable, once

EVENTS: Final = Metric("usage_events", "Events sent to the API", ("status",))
MEASURE_SECONDS: Final = 1.0
BODY_SECONDS: Final = 10.0
MAX_CACHED_IMPORTS: Final = 10_000

_log = Logger("billing.ingest")


class Ingest:
    """Takes usage in, within bounds.

    Args:
        in_flight: batches at once; more are answered 429.
        max_backlog: records in the outbox above which batches are answered 429.
        body_seconds: how long sending a body may take.
    """

    def __init__(
        self,
        app: Database,
        system: Database,
        *,
        in_flight: int,
        max_backlog: int,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app, self._system = app, system
        self._in_flight, self._max_backlog = in_flight, max_backlog
        self._at_hand: Counter[str] = Counter()
        self._body_seconds = body_seconds
        self._crowded = False
        self._imports: OrderedDict[tuple[str, str], Import] = OrderedDict()

    async def measure(self) -> None:
        """Watch the outbox until cancelled."""
        while True:
            try:
                async with self._system.writer() as connection:
                    waiting = await store.outbox_records(connection, self._max_backlog + 1)
            except Exception as error:
                # The database is away: batches fail by themselves, and we look again.
                _log.warn("the outbox cannot be measured", error=type(error).__name__)
            else:
                crowded = waiting > self._max_backlog
                if crowded != self._crowded:
                    _log.warn("taking usage in" if self._crowded else "refusing usage", outbox=waiting)
                self._crowded = crowded
            await asyncio.sleep(MEASURE_SECONDS)

    @asynccontextmanager
    async def slot(self, principal: Principal) -> AsyncIterator[None]:
        """One of the batches at hand, of which one organisation has at most half. Enter before the
        body is read.

        Raises:
            Problem: 429 `too_much_usage` with Retry-After.
        """
        if self._crowded:
            raise _too_much("The outbox is full: usage arrives faster than it is passed on.", 5)
        mine = self._at_hand[principal.tenant_id]
        if self._at_hand.total() >= self._in_flight or mine >= max(1, self._in_flight // 2):
            raise _too_much("More batches are being taken in than this service can; send fewer at once.", 1)
        self._at_hand[principal.tenant_id] += 1
        try:
            yield
        finally:
            self._at_hand[principal.tenant_id] -= 1
            if not self._at_hand[principal.tenant_id]:
                del self._at_hand[principal.tenant_id]

    async def body(self, reading: Awaitable[bytes]) -> bytes:
        """The body, unless it is sent so slowly that it would hold its slot.

        Raises:
            Problem: 408 `body_too_slow`; whatever reading raises.
        """
        try:
            async with asyncio.timeout(self._body_seconds):
                return await reading
        except TimeoutError:
            raise Problem(
                408,
                "body_too_slow",
                "Request time-out",
                f"The body did not arrive within {self._body_seconds:g} s; send fewer events at a time.",
                headers={"connection": "close"},
            ) from None

    async def take(self, principal: Principal, values: list[object], repeatable: Repeatable) -> Response:
        """200 with a verdict for each event; what is accepted is durable."""
        if principal.kind == "system" and not principal.tenant_id:
            return await self._take_from_platform(values)
        tenant_id = own_tenant(principal)
        batch = read_batch(values, tenant_id)
        with tenant(tenant_id):
            async with self._app.writer() as connection:
                answer = await once(connection, repeatable, lambda: self._store(connection, batch))
        _count(batch)
        return answer

    async def replace(
        self, principal: Principal, body: schemas.Replacement, value: object, repeatable: Repeatable
    ) -> Response:
        """201: the void of one event and another in its place, both or none.

        Args:
            value: the new event, as it came.

        Raises:
            Problem: 422 with the code of the contract, `same_event` or `replaced_event`; 409 `already_replaced`.
        """
        tenant_id = own_tenant(principal)
        # What a tenant may not send it may not void either.
        named = void_of(tenant_id, body.replaces, body.subject)
        batch = read_batch([msgspec.to_builtins(named), value], tenant_id)

        async def work() -> Answer:
            check_times(batch, await self._find_imports(connection, batch), now())
            for index, path in enumerate(("/replaces", "/event")):
                if index in batch.refused:
                    raise invalid(path, batch.refused[index].message, code=batch.refused[index].code)
            void, event = batch.accepted
            if event.identity == named.reference:
                raise invalid("/event/id", "the new event needs an id of its own", code="same_event")
            if not isinstance(event, UsageEvent):
                raise invalid("/event/type", "only usage takes the place of usage", code="schema")
            await _claim(connection, body.replaces, event)
            await enqueue(
                connection, [NewRecord(TOPIC, one.key, one.encode()) for one in (void, event)], tenant_id
            )
            return Answer(201, schemas.replacement_document(body.replaces, void.id, event.id))

        with tenant(tenant_id):
            async with self._app.writer() as connection:
                answer = await once(connection, repeatable, work)
        _count(batch)
        return answer

    async def register(
        self, principal: Principal, body: schemas.NewImport, repeatable: Repeatable
    ) -> Response:
        """201 with the import. Declaring the same again is the same import."""
        tenant_id = own_tenant(principal)
        made = Import.of(tenant_id, body.source, body.period_start, body.period_end)

        async def work() -> Answer:
            fresh = await store.add_import(connection, tenant_id, made, principal.subject)
            if not fresh and not await store.find_imports(connection, tenant_id, [made.id]):
                raise not_found("organisation")
            if fresh:
                await audit.record(
                    connection,
                    action="usage.import",
                    actor=principal.subject,
                    tenant_id=tenant_id,
                    target=made.id,
                    outcome="success",
                )
            return Answer(201, schemas.import_document(made))

        with tenant(tenant_id):
            async with self._app.writer() as connection:
                return await once(connection, repeatable, work)

    async def _take_from_platform(self, values: list[object]) -> Response:
        """Events of the platform's own parts, which name their tenants."""
        batch = read_batch(values, None)
        async with self._system.writer() as connection:
            answer = await once(connection, Repeatable(None, "", b""), lambda: self._store(connection, batch))
        _count(batch)
        return answer

    async def _store(self, connection: AsyncConnection, batch: Batch) -> Answer:
        check_times(batch, await self._find_imports(connection, batch), now())
        by_tenant: dict[str, list[UsageRecord]] = {}
        for event in batch.accepted:
            by_tenant.setdefault(event.tenant, []).append(event)
        for tenant_id, events in by_tenant.items():
            await enqueue(
                connection, [NewRecord(TOPIC, event.key, event.encode()) for event in events], tenant_id
            )
        return Answer(200, batch.document())

    async def _find_imports(self, connection: AsyncConnection, batch: Batch) -> dict[tuple[str, str], Import]:
        """Imports never change, so those found once are kept."""
        found: dict[tuple[str, str], Import] = {}
        for tenant_id, ids in batch.imports.items():
            missing = []
            for import_id in ids:
                known = self._imports.get((tenant_id, import_id))
                if known is None:
                    missing.append(import_id)
                else:
                    self._imports.move_to_end((tenant_id, import_id))
                    found[tenant_id, import_id] = known
            for declared in await store.find_imports(connection, tenant_id, missing) if missing else ():
                found[tenant_id, declared.id] = self._imports[tenant_id, declared.id] = declared
        while len(self._imports) > MAX_CACHED_IMPORTS:
            self._imports.popitem(last=False)
        return found


def _count(batch: Batch) -> None:
    EVENTS.labels("accepted").inc(len(batch.events) - len(batch.refused))
    EVENTS.labels("refused").inc(len(batch.refused))


async def _claim(connection: AsyncConnection, replaced: Reference, event: UsageEvent) -> None:
    """Raises: Problem 409 where another event took the place, 422 where the new one is part of another correction."""
    mine = replacement_store.Event(event.source, event.id, event.subject)
    try:
        await replacement_store.replace(connection, event.tenant, replaced, mine)
    except replacement_store.ReplacedError as error:
        standing = error.standing
        raise Problem(
            409,
            "already_replaced",
            "Already replaced",
            f"Event {replaced.id!r} of {replaced.source!r} was replaced before, and {standing.id!r} of "
            f"{standing.source!r} stands in its place now; replace that one. Nothing was taken in.",
        ) from None
    except replacement_store.UsedError:
        raise invalid(
            "/event/id",
            "this event was replaced itself or takes the place of another; send the new one under another id",
            code="replaced_event",
        ) from None


def _too_much(detail: str, seconds: int) -> Problem:
    return Problem(
        429, "too_much_usage", "Too much usage at once", detail, headers={"retry-after": str(seconds)}
    )
