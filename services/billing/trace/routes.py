"""HTTP of traces."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response

from core.contracts.lookup import MOST
from services.billing.invoices.schemas import month_query
from services.billing.routes import BillingOf, TenantQuery
from services.billing.trace import documents
from services.billing.trace.reconcile import sheet
from services.common.auth import Principal, require
from services.common.errors import invalid, not_found
from services.common.paging import DEFAULT_LIMIT, Cursor

router = APIRouter()

Reader = Annotated[Principal, Depends(require("billing:read"))]
InvoiceName = Annotated[str, Path(max_length=64, description="`inv_…`, or a number such as INV-000001.")]
CSV = "text/csv"


@router.get("/api/v1/billing/invoices/{invoice}/lines/{line}/events", tags=["billing"])
async def line_events(
    billing: BillingOf,
    principal: Reader,
    invoice: Annotated[
        str, Path(max_length=64, description="`inv_…`, a number such as INV-000001, or `draft`.")
    ],
    line: Annotated[
        str,
        Path(
            max_length=7,
            description="From 1, in the order of the document; of the draft adjustments follow the lines.",
        ),
    ],
    limit: Annotated[int, Query(ge=1, le=MOST, description="How many events.")] = DEFAULT_LIMIT,
    after: Annotated[
        Cursor, Query(description="Events behind this place: `last_id` of the page before.")
    ] = "",
    tenant: TenantQuery = None,
) -> documents.LineEvents:
    """The events that a line charges, with their coordinates, in the order they landed; of an adjustment for late
    usage those that came since. With the first page the line is computed again from them: `proof`."""
    tenant_id = await billing.tenants.resolve(principal, tenant)
    if not (line.isascii() and line.isdigit()):
        raise not_found("line")
    return await billing.lines.events(tenant_id, invoice, int(line), after, limit)


@router.get("/api/v1/billing/invoices/{invoice}/verification", tags=["billing"])
async def verify_invoice(
    billing: BillingOf, principal: Reader, invoice: InvoiceName, tenant: TenantQuery = None
) -> documents.Verification:
    """An issued document computed again from what it names (generation and slice of the usage, revision of the
    prices, version of the code), from the landed records themselves."""
    return await billing.lines.verify(await billing.tenants.resolve(principal, tenant), invoice)


@router.get(
    "/api/v1/billing/reconciliation/{month}",
    tags=["billing"],
    response_model=documents.Reconciliation,
    responses={200: {"content": {CSV: {}}}},
)
async def reconcile(
    request: Request,
    billing: BillingOf,
    principal: Reader,
    month: Annotated[
        str, Path(max_length=16, description="A month (UTC), such as 2026-03; with `.csv` as a table.")
    ],
    tenant: TenantQuery = None,
) -> Response:
    """From the records of a month to what is charged for it, every difference shown; as CSV with `.csv` or
    `Accept: text/csv`."""
    tenant_id = await billing.tenants.resolve(principal, tenant)
    name = month.removesuffix(".csv")
    found = await billing.reconciler.of(tenant_id, month_query(name))
    about = {"vary": "accept", "cache-control": "private, no-cache"}
    if name != month or CSV in request.headers.get("accept", ""):
        about["content-disposition"] = f'attachment; filename="reconciliation-{name}.csv"'
        return Response(sheet(found), headers=about, media_type=CSV)
    return JSONResponse(found, headers=about)


@router.get("/api/v1/usage/trace", tags=["usage"])
async def trace_event(
    billing: BillingOf,
    principal: Annotated[Principal, Depends(require("usage:read", "billing:read"))],
    source: Annotated[str | None, Query(max_length=256, description="With `id`: names the event.")] = None,
    event_id: Annotated[str | None, Query(alias="id", max_length=256)] = None,
    partition: Annotated[
        int | None, Query(ge=0, le=1 << 20, description="With `offset`: names a record by where it stood.")
    ] = None,
    offset: Annotated[int | None, Query(ge=0, le=1 << 53)] = None,
    topic_id: Annotated[
        str | None, Query(max_length=256, description="Of the newest topic where left out.")
    ] = None,
    tenant: TenantQuery = None,
) -> documents.EventTrace:
    """What became of one event: the invoice lines it is in, or exactly one reason why it is in none."""
    tenant_id = await billing.tenants.resolve(principal, tenant)
    named, placed = (source, event_id), (partition, offset)
    if source and event_id and placed == (None, None) and topic_id is None:
        return await billing.events.by_identity(tenant_id, source, event_id)
    if partition is not None and offset is not None and named == (None, None):
        return await billing.events.by_place(tenant_id, topic_id, partition, offset)
    raise invalid("/query/id", "name an event by `source` and `id`, or a record by `partition` and `offset`")
