"""Records that were not counted: a person accepts or rejects each, once.

Accepting never changes what has landed. It sends records through the outbox and the topic like any
other, so what they become is decided where all fates are, and every cell keeps its lineage.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now, rfc3339
from core.contracts.usage import (
    MAX_AGE,
    MAX_AHEAD,
    TYPE,
    VOID_TYPE,
    Reference,
    UsageRecord,
    convert_record,
)
from core.database import Database, tenant
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.messaging.outbox import enqueue
from core.meters import PLATFORM_SOURCES
from services.billing import documents, quarantine_store, replacement_store, store
from services.billing.live import TOPIC
from services.billing.quarantine_store import Filter, Quarantined, State
from services.billing.replacement_store import Event, UsedError
from services.billing.store import Import
from services.billing.tenants import own_tenant
from services.billing.verdicts import LANDING_MARGIN, void_of
from services.common.auth import Principal
from services.common.errors import Problem, not_found
from services.common.paging import Page, listing

TYPES: Final[Mapping[str, str]] = {"usage": TYPE, "void": VOID_TYPE}
"""Kinds of records that can be sent again."""

REASONS: Final[Mapping[str, str]] = {
    "conflict": "An event of the same source and id was counted and says something else. Accept this version, "
    "and the counted one is voided; reject it, and the counted one stays.",
    "out_of_limits": "Its time was more than 5 minutes ahead or more than 400 days ago when it was received. "
    "Accept it, and it is counted as an import of its source and time.",
    "unknown_reference": "It voids an event that had not landed. Accept it, and it is sent again.",
    "unknown_import": "It names an import that its organisation had not declared when it landed. Declare it and "
    "send the event again; or accept it, and it is counted without, where it is old as an import of its own.",
    "import_mismatch": "Its source or time is not what the import that it names declared. Accept it, and it is counted "
    "without, where it is old as an import of its own.",
    "unreadable": "It is not one JSON object in UTF-8.",
    "schema": "A field is missing, unknown or of another type than the contract says.",
    "unknown_meter": "Its meter is not registered; see GET /api/v1/meters.",
    "quantity": "Its quantity is no plain decimal text.",
    "dimension": "It has a dimension that its meter does not know.",
    "time": "Its time lies outside 2000 to 2200.",
    "producer": "`producer` and `sequence` come together, `incarnation` with both.",
    "checkpoint": "Its count is not that of its sequence range.",
}
_ACCEPTABLE: Final = frozenset(
    {"conflict", "out_of_limits", "unknown_reference", "unknown_import", "import_mismatch"}
)


class Quarantine:
    def __init__(self, app: Database, system: Database) -> None:
        self._app, self._system = app, system

    async def page(self, principal: Principal, wanted: Filter, page: Page) -> documents.QuarantinePage:
        """Newest first; of everybody where the owner of the platform names no organisation."""
        async with self._open(principal, wanted.tenant, write=False) as connection:
            found = await quarantine_store.page(connection, wanted, page)
        return cast(documents.QuarantinePage, listing([document(one) for one in found], page))

    async def find(
        self, principal: Principal, tenant_id: str | None, record_id: str
    ) -> documents.QuarantinedRecord:
        """Raises: Problem 404."""
        async with self._open(principal, tenant_id, write=False) as connection:
            found = await quarantine_store.find(connection, tenant_id, record_id)
        if found is None:
            raise _unknown()
        return document(found)

    async def decide(
        self, principal: Principal, tenant_id: str | None, record_id: str, state: State
    ) -> documents.QuarantinedRecord:
        """Accept or reject; deciding the same again changes nothing.

        Raises:
            Problem: 404, 403 `person_required` or `platform_only`, 409 `already_decided`,
                422 `not_acceptable`.
        """
        async with self._open(principal, tenant_id, write=True) as connection:
            found = await quarantine_store.find(connection, tenant_id, record_id)
            if found is None:
                raise _unknown()
            _may_decide(principal, found)
            found = await quarantine_store.lock(connection, found)
            if found.state == state:
                return document(found)
            if found.state != "open":
                raise Problem(
                    409,
                    "already_decided",
                    "Already decided",
                    f"The record was {found.state} before; a decision is made once.",
                )
            sent: dict[str, str] = {}
            if state == "accepted":
                sent = await self._send(connection, found, principal.subject)
            decided = await quarantine_store.decide(connection, found, state, principal.subject, sent)
            await audit.record(
                connection,
                action="usage.quarantine_accept" if state == "accepted" else "usage.quarantine_reject",
                actor=principal.subject,
                tenant_id=await self._audited(connection, found.tenant),
                target=found.id,
                outcome="success",
                detail={"code": found.code},
            )
        return document(decided)

    @asynccontextmanager
    async def _open(
        self, principal: Principal, tenant_id: str | None, *, write: bool
    ) -> AsyncIterator[AsyncConnection]:
        """Role `app` for an organisation's own, `system` for the owner of the platform: some records
        name no organisation, or one that does not exist."""
        if principal.platform_owner or principal.kind == "system":
            async with self._system.writer() if write else self._system.reader() as connection:
                yield connection
            return
        with tenant(tenant_id or own_tenant(principal)):
            async with self._app.writer() if write else self._app.reader() as connection:
                yield connection

    async def _send(self, connection: AsyncConnection, found: Quarantined, person: str) -> dict[str, str]:
        """Send what accepting means; ids of what was sent."""
        if not acceptable(found):
            raise Problem(
                422,
                "not_acceptable",
                "Cannot be accepted",
                f"{REASONS.get(found.code, found.code)} It can only be rejected, which acknowledges it.",
            )
        records, sent = await _replacing(connection, found) if found.code == "conflict" else ([], {})
        event = {"id": sent.get("event", found.event_id), **(found.version or {})}
        if found.kind == "void":
            event["time"] = rfc3339(now())  # decides nothing: a void lies where its event lies
        record = _record(found, str(found.kind), event)
        if _beyond_limits(record.time):
            declared = await self._declare(connection, found, record.time, person)
            record = _record(found, str(found.kind), {**event, "importid": declared.id})
            sent["import"] = declared.id
        records.append(record)
        await enqueue(connection, [NewRecord(TOPIC, one.key, one.encode()) for one in records], found.tenant)
        return {**sent, "event": record.id}

    async def _declare(
        self, connection: AsyncConnection, found: Quarantined, at: datetime, person: str
    ) -> Import:
        """The import of this one moment, under which a record is counted whatever its age."""
        declared = Import.of(found.tenant, str(found.source), at, at)
        fresh = await store.add_import(connection, found.tenant, declared, person)
        if not fresh and not await store.find_imports(connection, found.tenant, [declared.id]):
            raise Problem(
                422,
                "not_acceptable",
                "Cannot be accepted",
                f"There is no organisation {found.tenant} that could declare an import.",
            )
        return declared

    async def _audited(self, connection: AsyncConnection, tenant_id: str) -> str:
        known = await store.find_tenant(connection, tenant_id)
        return tenant_id if known == tenant_id else audit.NO_TENANT


def acceptable(found: Quarantined) -> bool:
    """True where there is something to send."""
    return found.code in _ACCEPTABLE and found.kind in TYPES and found.version is not None


async def _replacing(
    connection: AsyncConnection, found: Quarantined
) -> tuple[list[UsageRecord], dict[str, str]]:
    """The void of what counts for this identity now (the first event, or what took its place last), and the id
    under which this version takes its place.

    Raises:
        Problem: 422 where somebody used that id in a correction.
    """
    source = str(found.source)
    event_id = derived_id("quarantine", found.topic_id, str(found.partition), str(found.offset))
    try:
        standing = await replacement_store.take_over(
            connection,
            found.tenant,
            Event(source, str(found.event_id), _subject(found.counted)),
            Event(source, event_id, _subject(found.version)),
        )
    except UsedError:
        raise Problem(
            422,
            "not_acceptable",
            "Cannot be accepted",
            f"The id under which it would count, {event_id!r} of {source!r}, is part of another correction. Reject it, "
            "and replace the event that counts with what it says (POST /api/v1/usage/replacements).",
        ) from None
    # Under the key of what it voids, so that it lands behind it.
    void = void_of(found.tenant, Reference(standing.source, standing.id), standing.subject)
    sent = {"voids": standing.id, "voids_source": standing.source, "void": void.id, "event": event_id}
    return [void], sent


def _subject(said: Mapping[str, Any] | None) -> str:
    return str((said or {}).get("subject", ""))


def _record(found: Quarantined, kind: str, fields: Mapping[str, Any]) -> UsageRecord:
    return convert_record(
        {"specversion": "1.0", "type": TYPES[kind], "source": found.source, "tenant": found.tenant, **fields}
    )


def _beyond_limits(at: datetime) -> bool:
    """True where a live record of this time would be quarantined (again)."""
    return at > now() + MAX_AHEAD or at < now() - MAX_AGE + LANDING_MARGIN


def _may_decide(principal: Principal, found: Quarantined) -> None:
    if principal.kind != "user":
        raise Problem(
            403, "person_required", "Not allowed", "A person decides; log in instead of using a key."
        )
    if found.source in PLATFORM_SOURCES and not principal.platform_owner:
        raise Problem(
            403,
            "platform_only",
            "Not allowed",
            "The platform metered this itself, so its owner decides.",
        )


def _unknown() -> Problem:
    return not_found("quarantined record")


def document(found: Quarantined) -> documents.QuarantinedRecord:
    return {
        "id": found.id,
        "object": "quarantined_record",
        "tenant": found.tenant,
        "state": found.state,
        "fate": found.fate,
        "code": found.code,
        "reason": REASONS.get(found.code, found.code),
        "kind": found.kind,
        "received": rfc3339(found.received),
        "source": found.source,
        "event_id": found.event_id,
        "version": None if found.version is None else dict(found.version),
        "counted": None if found.counted is None else dict(found.counted),
        "sent": None if found.sent is None else dict(found.sent),
        "bytes": found.bytes,
        "acceptable": found.state == "open" and acceptable(found),
        "coordinates": {
            "topic_id": found.topic_id,
            "partition": found.partition,
            "offset": found.offset,
            "slice": found.slice,
        },
        "decided_by": found.decided_by,
        "decided_at": None if found.decided_at is None else rfc3339(found.decided_at),
    }
