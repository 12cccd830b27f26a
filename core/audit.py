"""Audit: who did what to what, recorded in the transaction that does it.

    async with database.writer() as connection:
        …the change…
        await audit.record(connection, action="api_key.revoke", actor=principal.subject,
                           tenant_id=org, target=key_id, outcome="success")

The event goes through the outbox to `audit.logs` and lands in the Delta table `audit_events`. If it
cannot be written the transaction fails: nothing sensitive happens unrecorded. A refusal that leaves
nothing else behind is recorded in a transaction of its own.
"""

import re
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import now
from core.contracts.audit import NO_TENANT, SCHEMA, AuditEvent, Outcome, check
from core.eventlog.api import NewRecord
from core.ids import new_id
from core.messaging.outbox import enqueue
from core.security.sensitive import ACTIONS

__all__ = ["NO_TENANT", "Outcome", "record", "tenant_of"]

_NOTHING: Mapping[str, str] = {}
_TENANT: Final = re.compile(r"[a-z]+_[0-9a-f\-]{36}", re.ASCII)


def tenant_of(named: str) -> str:
    """The organisation that something bears the name of, or `NO_TENANT` where that is no id of one."""
    return named if _TENANT.fullmatch(named) else NO_TENANT


async def record(
    connection: AsyncConnection,
    *,
    action: str,
    actor: str,
    tenant_id: str,
    target: str,
    outcome: Outcome,
    detail: Mapping[str, str] = _NOTHING,
    sealed: str = "",
) -> str:
    """Record one event in the caller's transaction; returns its id.

    Args:
        action: one of `core.security.sensitive.ACTIONS`.
        actor: id of the user, key or part of the platform that acts.
        tenant_id: organisation it concerns; `NO_TENANT` where there is none (role `system` only).
        target: id of what is acted upon.
        detail: ids, codes and numbers. Personal data cannot be written here.
        sealed: base64url of a ciphertext of `core.security.fields`, for what must say more.

    Raises:
        ValueError: for an action that is not registered.
        ContractError: for a field outside the contract, such as free text in `detail`.
    """
    if action not in ACTIONS:
        raise ValueError(f"audit action {action!r} is not registered; add it to core.security.sensitive")
    span = trace.get_current_span().get_span_context()
    event = check(
        AuditEvent(
            id=new_id("aud"),
            time=now(),
            tenant=tenant_id,
            actor=actor,
            action=action,
            target=target,
            outcome=outcome,
            schema=SCHEMA,
            trace_id=f"{span.trace_id:032x}" if span.is_valid else "",
            detail=dict(detail),
            sealed=sealed,
        )
    )
    await enqueue(connection, [NewRecord("audit.logs", event.key, event.encode())], tenant_id)
    return event.id
