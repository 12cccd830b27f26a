"""HTTP of sender completeness."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from services.billing import documents
from services.billing.quarantine_routes import whose
from services.billing.routes import BillingOf, TenantQuery
from services.common.auth import Principal, require
from services.common.paging import PageQuery

router = APIRouter()

Reader = Annotated[Principal, Depends(require("usage:read"))]


@router.get("/api/v1/usage/producers", tags=["usage"])
async def producers(
    billing: BillingOf,
    principal: Reader,
    page: PageQuery,
    incomplete: Annotated[bool, Query(description="Only those with something open.")] = False,
    tenant: TenantQuery = None,
) -> documents.ProducerPage:
    """Producers that number their events, last heard of first, with every checkpoint that is not complete: which
    numbers are missing, and under which several events count."""
    return await billing.producers.page(
        principal, await whose(billing, principal, tenant), page, incomplete=incomplete
    )


@router.get("/api/v1/usage/producers/{id}", tags=["usage"])
async def producer(
    billing: BillingOf,
    principal: Reader,
    producer_id: Annotated[str, Path(alias="id", max_length=64, pattern=r"^[!-~]+$")],
    tenant: TenantQuery = None,
) -> documents.UsageProducer:
    """One life of a producer and its newest checkpoints, those found wanting first."""
    return await billing.producers.find(principal, await whose(billing, principal, tenant), producer_id)
