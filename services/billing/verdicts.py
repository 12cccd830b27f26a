"""A verdict for each event of a batch: taken in, or refused with a stable code. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from core.clock import now as instant
from core.contracts.usage import (
    MAX_AGE,
    MAX_AHEAD,
    VOID_TYPE,
    ContractError,
    Reference,
    UsageRecord,
    VoidEvent,
    convert_record,
)
from core.ids import derived_id
from core.meters import PLATFORM_SOURCES
from services.billing.documents import Verdict, Verdicts
from services.billing.store import Import

MAX_EVENTS: Final = 1000
LANDING_MARGIN: Final = timedelta(hours=1)
"""The slice measures age when the record reaches the topic, a little after we did. An event that we
take at the very limit would be quarantined there."""


@dataclass(slots=True)
class Batch:
    """Events in the order sent: `events[i]` is None where `refused` has a reason."""

    events: list[UsageRecord | None] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    refused: dict[int, ContractError] = field(default_factory=dict)

    def refuse(self, index: int, error: ContractError) -> None:
        self.events[index] = None
        self.refused[index] = error

    @property
    def accepted(self) -> list[UsageRecord]:
        return [event for event in self.events if event is not None]

    @property
    def imports(self) -> dict[str, set[str]]:
        """Import ids that events name, by tenant."""
        named: dict[str, set[str]] = {}
        for event in self.events:
            if event is not None and event.importid:
                named.setdefault(event.tenant, set()).add(event.importid)
        return named

    def document(self) -> Verdicts:
        """The answer of `POST /api/v1/usage/events`."""
        verdicts: list[Verdict] = []
        for index, event_id in enumerate(self.ids):
            verdict: Verdict = {"index": index, "id": event_id, "status": "accepted"}
            if (error := self.refused.get(index)) is not None:
                verdict = {**verdict, "status": "refused", "code": error.code, "message": error.message}
            verdicts.append(verdict)
        refused = len(self.refused)
        return {"accepted": len(self.ids) - refused, "refused": refused, "verdicts": verdicts}


def read_batch(values: Sequence[object], tenant_id: str | None) -> Batch:
    """Hold each value against the contract and the sender's tenant.

    Args:
        tenant_id: filled in where an event names none; None for the platform itself, whose events
            name their tenant.
    """
    batch = Batch()
    for index, value in enumerate(values):
        named = value.get("id") if isinstance(value, dict) else None
        batch.ids.append(named if isinstance(named, str) and len(named) <= 256 else None)
        try:
            batch.events.append(_read(value, tenant_id))
        except ContractError as error:
            batch.events.append(None)
            batch.refused[index] = error
    return batch


def check_times(batch: Batch, imports: Mapping[tuple[str, str], Import], now: datetime) -> None:
    """Refuse what is too old or too new, unless it belongs to an import that declared it.

    Args:
        imports: those named by the batch that exist, by (tenant, id).
    """
    for index, event in enumerate(batch.events):
        if event is None:
            continue
        fault = _import_fault(event, imports) if event.importid else None
        if event.importid and fault is None:
            continue
        if event.time > now + MAX_AHEAD or event.time < now - MAX_AGE + LANDING_MARGIN:
            reason = (
                fault.message if fault else "register an import (POST /api/v1/usage/imports) for old usage"
            )
            batch.refuse(
                index,
                ContractError(
                    "time_out_of_limits",
                    f"`time` is more than 5 minutes ahead or more than 400 days ago; {reason}",
                ),
            )
        elif fault is not None:
            batch.refuse(index, fault)


def _read(value: object, tenant_id: str | None) -> UsageRecord:
    if not isinstance(value, dict):
        raise ContractError("schema", "an event is a JSON object")
    if tenant_id is not None and "tenant" not in value:
        value = {**value, "tenant": tenant_id}
    event = convert_record(value)
    if tenant_id is None:
        return event
    if event.tenant != tenant_id:
        raise ContractError(
            "foreign_tenant", "`tenant` is not the organisation of your credential; leave it out"
        )
    sources = {event.source, event.data.source} if isinstance(event, VoidEvent) else {event.source}
    if sources & PLATFORM_SOURCES:
        raise ContractError(
            "reserved_source", "what the platform meters itself stands under this `source`; use another name"
        )
    return event


def void_of(tenant_id: str, reference: Reference, subject: str) -> VoidEvent:
    """The void of an event, always under one id.

    Args:
        subject: of that event, so that the void lands behind it.
    """
    return VoidEvent(
        id=derived_id("void", tenant_id, reference.source, reference.id),
        source=reference.source,
        time=instant(),
        tenant=tenant_id,
        subject=subject,
        data=reference,
        type=VOID_TYPE,
        specversion="1.0",
    )


def _import_fault(event: UsageRecord, imports: Mapping[tuple[str, str], Import]) -> ContractError | None:
    declared = imports.get((event.tenant, event.importid))
    if declared is None:
        return ContractError("unknown_import", "`importid` names no registered import of this organisation")
    if declared.source != event.source:
        return ContractError("import_mismatch", "`source` is not the one that the import declared")
    if not declared.period_start <= event.time <= declared.period_end:
        return ContractError("import_mismatch", "`time` lies outside the period that the import declared")
    return None
