"""HTTP of invoices."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import JSONResponse, Response

from core.invoices.document import sha256
from services.billing.invoices import documents, sheet
from services.billing.invoices.handlers import headers, plain
from services.billing.invoices.schemas import ServicePeriodNamed, periods_of
from services.billing.routes import BillingOf, TenantQuery
from services.common.auth import Principal, require
from services.common.body import documented, json_body
from services.common.paging import PageQuery

router = APIRouter()

Reader = Annotated[Principal, Depends(require("billing:read"))]
Closer = Annotated[Principal, Depends(require("billing:write"))]
NamedBody = Annotated[ServicePeriodNamed, Depends(json_body(ServicePeriodNamed, max_bytes=16_384))]
CSV = "text/csv"


@router.post(
    "/api/v1/billing/invoices",
    tags=["billing"],
    status_code=201,
    response_model=documents.Issued,
    openapi_extra=documented(ServicePeriodNamed),
)
async def close_period(
    billing: BillingOf, principal: Closer, body: NamedBody, tenant: TenantQuery = None
) -> Response:
    """Close a service period: its final invoice, which never changes. 200 with the same document where it was
    closed before, or for a dry run. What lands later becomes an adjustment."""
    period = body.named()
    tenant_id = await billing.tenants.resolve(principal, tenant)
    made = await billing.invoices.close(tenant_id, period, principal.subject, dry_run=body.dry_run)
    return Response(
        made.content, 201 if made.fresh else 200, headers(sha256(made.content)), media_type="application/json"
    )


@router.get("/api/v1/billing/invoices", tags=["billing"], response_model=documents.Invoices)
async def list_invoices(
    billing: BillingOf, principal: Reader, page: PageQuery, tenant: TenantQuery = None
) -> dict[str, Any]:
    """Issued invoices and adjustments, without their lines."""
    return await billing.invoices.page(await billing.tenants.resolve(principal, tenant), page)


@router.post(
    "/api/v1/billing/adjustments",
    tags=["billing"],
    response_model=documents.Adjustments,
    openapi_extra=documented(ServicePeriodNamed, description="`all` looks at every closed period."),
)
async def adjust(
    billing: BillingOf, principal: Closer, body: NamedBody, tenant: TenantQuery = None
) -> Response:
    """Post what closed periods owe or get back because usage landed after they were closed. Posting twice posts
    once: where nothing is left to adjust, the list is empty."""
    period = periods_of(body)
    tenant_id = await billing.tenants.resolve(principal, tenant)
    made = await billing.invoices.adjust(tenant_id, period, principal.subject, dry_run=body.dry_run)
    return JSONResponse({"object": "list", "data": [plain(one.document) for one in made], "has_more": False})


@router.get(
    "/api/v1/billing/invoices/{invoice}",
    tags=["billing"],
    response_model=documents.Issued,
    responses={200: {"content": {CSV: {}}}},
)
async def get_invoice(
    request: Request,
    billing: BillingOf,
    principal: Reader,
    invoice: Annotated[
        str,
        Path(max_length=64, description="`inv_…`, or a number such as INV-000001; with `.csv` as a table."),
    ],
    tenant: TenantQuery = None,
) -> Response:
    """An issued document, byte for byte; as CSV with `.csv` or `Accept: text/csv`."""
    tenant_id = await billing.tenants.resolve(principal, tenant)
    name = invoice.removesuffix(".csv")
    found = await billing.invoices.get(tenant_id, name)
    about = headers(found.sha256)
    if name != invoice or CSV in request.headers.get("accept", ""):
        disposition = {"content-disposition": f'attachment; filename="{found.document.number}.csv"'}
        return Response(
            sheet.invoice(found.document), headers={**about, **disposition, "vary": "accept"}, media_type=CSV
        )
    return Response(found.content, headers={**about, "vary": "accept"}, media_type="application/json")
