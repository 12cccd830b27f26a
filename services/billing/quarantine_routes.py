"""HTTP of the records that were not counted."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query

from services.billing import documents
from services.billing.quarantine_store import Filter, State
from services.billing.routes import BillingOf, TenantQuery
from services.common.auth import Principal, require
from services.common.paging import PageQuery

router = APIRouter()

RecordId = Annotated[str, Path(alias="id", max_length=64, pattern=r"^[!-~]+$")]
Reader = Annotated[Principal, Depends(require("usage:read"))]
Decider = Annotated[Principal, Depends(require("usage:import"))]


@dataclass(frozen=True, slots=True)
class QuarantineQuery:
    """Filters of the list."""

    state: Annotated[State | None, Query(description="`open` until a person decides.")] = None
    fate: Annotated[Literal["quarantined", "rejected"] | None, Query()] = None
    code: Annotated[
        str | None, Query(max_length=64, pattern=r"^[a-z_]+$", description="For example `conflict`.")
    ] = None


async def whose(billing: BillingOf, principal: Principal, wanted: str | None) -> str | None:
    """None, which is everybody, for the owner of the platform who names no organisation."""
    if wanted is None and (principal.platform_owner or principal.kind == "system"):
        return None
    return await billing.tenants.resolve(principal, wanted)


@router.get("/api/v1/usage/quarantine", tags=["usage"])
async def quarantined(
    billing: BillingOf,
    principal: Reader,
    page: PageQuery,
    query: Annotated[QuarantineQuery, Depends()],
    tenant: TenantQuery = None,
) -> documents.QuarantinePage:
    """Records that landed and were not counted (repetitions apart), newest first. The owner of the
    platform who names no organisation sees all, also those that name none."""
    wanted = Filter(await whose(billing, principal, tenant), query.state, query.fate, query.code)
    return await billing.quarantine.page(principal, wanted, page)


@router.get("/api/v1/usage/quarantine/{id}", tags=["usage"])
async def quarantined_record(
    billing: BillingOf, principal: Reader, record_id: RecordId, tenant: TenantQuery = None
) -> documents.QuarantinedRecord:
    """One of them, with both versions of a conflict."""
    return await billing.quarantine.find(principal, await whose(billing, principal, tenant), record_id)


@router.post("/api/v1/usage/quarantine/{id}/accept", tags=["usage"])
async def accept(
    billing: BillingOf, principal: Decider, record_id: RecordId, tenant: TenantQuery = None
) -> documents.QuarantinedRecord:
    """A person lets it count: of a conflict this version takes the place of the counted one, what was out
    of the limits of time is sent again as an import. It is counted with the next slice. Doing it twice
    changes nothing."""
    return await billing.quarantine.decide(
        principal, await whose(billing, principal, tenant), record_id, "accepted"
    )


@router.post("/api/v1/usage/quarantine/{id}/reject", tags=["usage"])
async def reject(
    billing: BillingOf, principal: Decider, record_id: RecordId, tenant: TenantQuery = None
) -> documents.QuarantinedRecord:
    """A person has seen it, and it stays uncounted. Doing it twice changes nothing."""
    return await billing.quarantine.decide(
        principal, await whose(billing, principal, tenant), record_id, "rejected"
    )
