"""HTTP of price fixes."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from services.billing.invoices import documents
from services.billing.invoices.fix_handlers import NewPriceFix, Seen, applied
from services.billing.routes import BillingOf
from services.common.auth import Principal, require
from services.common.body import documented, json_body
from services.common.paging import DEFAULT_LIMIT, MAX_LIMIT, Cursor, PageQuery

router = APIRouter()

Reader = Annotated[Principal, Depends(require("billing:read"))]
Fixer = Annotated[Principal, Depends(require("billing:write"))]
FixId = Annotated[str, Path(alias="price_fix", max_length=64, description="`fix_…`")]
SeenBody = Annotated[Seen, Depends(json_body(Seen, max_bytes=16_384))]
PATH = "/api/v1/billing/price-fixes"


@router.post(PATH, tags=["billing"], status_code=201, openapi_extra=documented(NewPriceFix))
async def propose_price_fix(
    billing: BillingOf,
    principal: Fixer,
    body: Annotated[NewPriceFix, Depends(json_body(NewPriceFix, max_bytes=262_144))],
) -> documents.PriceFix:
    """The dry run: what the prices of now would change in closed service periods. Writes nothing to invoices. A
    change beyond the safety bounds is `parked` and says why in `reasons`."""
    return await billing.price_fixes.propose(principal, body)


@router.get(PATH, tags=["billing"], response_model=documents.PriceFixes)
async def list_price_fixes(billing: BillingOf, principal: Reader, page: PageQuery) -> dict[str, Any]:
    """Price fixes, without their lines; shown to the owner of the platform."""
    return await billing.price_fixes.page(principal, page)


@router.get(PATH + "/{price_fix}", tags=["billing"])
async def get_price_fix(billing: BillingOf, principal: Reader, price_fix: FixId) -> documents.PriceFix:
    """One price fix, and how far it is."""
    return await billing.price_fixes.get(principal, price_fix)


@router.get(PATH + "/{price_fix}/items", tags=["billing"], response_model=documents.PriceFixItems)
async def list_price_fix_items(
    billing: BillingOf,
    principal: Reader,
    price_fix: FixId,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    after: Annotated[Cursor, Query(description="Items behind the one with this id.")] = "",
) -> dict[str, Any]:
    """The difference of each line, by organisation and service period: exactly what applying posts."""
    return await billing.price_fixes.items(principal, price_fix, limit, after)


@router.post(PATH + "/{price_fix}/approve", tags=["billing"], openapi_extra=documented(Seen))
async def approve_price_fix(
    billing: BillingOf, principal: Fixer, price_fix: FixId, body: SeenBody
) -> documents.PriceFix:
    """A person approves. A parked fix needs each of its `reasons` in `accept`."""
    return await billing.price_fixes.approve(principal, price_fix, body)


@router.post(PATH + "/{price_fix}/reject", tags=["billing"], openapi_extra=documented(Seen))
async def reject_price_fix(
    billing: BillingOf, principal: Fixer, price_fix: FixId, body: SeenBody
) -> documents.PriceFix:
    """It is never applied."""
    return await billing.price_fixes.reject(principal, price_fix, body)


@router.post(
    PATH + "/{price_fix}/apply",
    tags=["billing"],
    response_model=documents.PriceFixApplied,
    openapi_extra=documented(Seen),
)
async def apply_price_fix(
    billing: BillingOf, principal: Fixer, price_fix: FixId, body: SeenBody
) -> dict[str, Any]:
    """Post the adjustments of an approved fix, as the dry run listed them. Again posts nothing; after a crash it
    posts what is left."""
    return applied(await billing.price_fixes.apply(principal, price_fix, body))
