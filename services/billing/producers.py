"""Sender completeness for people: what producers said they sent, and what of it is missing."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import cast

from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import rfc3339
from core.database import Database, tenant
from services.billing import documents, producer_store
from services.billing.producer_store import Checked, Producer
from services.billing.tenants import own_tenant
from services.common.auth import Principal
from services.common.errors import not_found
from services.common.paging import Page, listing


class Producers:
    def __init__(self, app: Database, system: Database) -> None:
        self._app, self._system = app, system

    async def page(
        self, principal: Principal, tenant_id: str | None, page: Page, *, incomplete: bool
    ) -> documents.ProducerPage:
        """Last heard of first, with what is open; of everybody where the owner of the platform names nobody."""
        async with self._open(principal, tenant_id) as connection:
            found = await producer_store.page(connection, tenant_id, incomplete=incomplete, page=page)
            wanting = await producer_store.checkpoints(
                connection, [one.id for one in found if one.open], found_wanting=True
            )
        shown = [document(one, (c for c in wanting if c.producer_id == one.id)) for one in found]
        return cast(documents.ProducerPage, listing(shown, page))

    async def find(
        self, principal: Principal, tenant_id: str | None, producer_id: str
    ) -> documents.UsageProducer:
        """One, with its newest checkpoints. Raises: Problem 404."""
        async with self._open(principal, tenant_id) as connection:
            found = await producer_store.find(connection, tenant_id, producer_id)
            if found is None:
                raise not_found("producer")
            return document(
                found, await producer_store.checkpoints(connection, [found.id], found_wanting=False)
            )

    @asynccontextmanager
    async def _open(self, principal: Principal, tenant_id: str | None) -> AsyncIterator[AsyncConnection]:
        if principal.platform_owner or principal.kind == "system":
            async with self._system.reader() as connection:
                yield connection
            return
        with tenant(tenant_id or own_tenant(principal)):
            async with self._app.reader() as connection:
                yield connection


def document(found: Producer, checkpoints: Iterable[Checked]) -> documents.UsageProducer:
    return {
        "id": found.id,
        "object": "usage_producer",
        "tenant": found.tenant,
        "producer": found.producer,
        "incarnation": found.incarnation,
        "state": "incomplete" if found.open else found.newest or "unclaimed",
        "last_sequence": found.last_sequence,
        "first_received": rfc3339(found.first_received),
        "last_received": rfc3339(found.last_received),
        "checkpoints": found.checkpoints,
        "open": found.open,
        "missing": found.missing,
        "data": [_checkpoint(one) for one in checkpoints],
    }


def _checkpoint(found: Checked) -> documents.CheckedCheckpoint:
    return {
        "id": found.id,
        "object": "usage_checkpoint",
        "first": found.first,
        "last": found.last,
        "received": rfc3339(found.received),
        "state": found.state,
        "missing": [list(each) for each in found.missing],
        "doubled": [list(each) for each in found.doubled],
        "repeated": [list(each) for each in found.repeated],
        "missing_events": found.missing_events,
        "named": found.named,
        "named_at": None if found.named_at is None else rfc3339(found.named_at),
        "closed_at": None if found.closed_at is None else rfc3339(found.closed_at),
    }
