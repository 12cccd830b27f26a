"""HTTP of the billing service."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from services.billing import documents, schemas
from services.billing.ingest import Ingest
from services.billing.invariants import Invariants
from services.billing.invoices.fix_handlers import PriceFixes
from services.billing.invoices.handlers import InvoiceHandlers
from services.billing.invoices.schemas import month_query
from services.billing.money import Money
from services.billing.producers import Producers
from services.billing.quarantine import Quarantine
from services.billing.quota import Grain, Question, Quota, question
from services.billing.tenants import Tenants
from services.billing.trace.events import Events
from services.billing.trace.lines import Lines
from services.billing.trace.reconcile import Reconciler
from services.common.auth import Principal, require
from services.common.body import decode, documented, parse, parsed, read
from services.common.idempotency import Repeatable

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Billing:
    """What the routes work with; the app puts it at `app.state.billing`."""

    ingest: Ingest
    quota: Quota
    money: Money
    invoices: InvoiceHandlers
    price_fixes: PriceFixes
    tenants: Tenants
    quarantine: Quarantine
    producers: Producers
    invariants: Invariants
    lines: Lines
    events: Events
    reconciler: Reconciler


async def _billing(request: Request) -> Billing:
    found: Billing = request.app.state.billing
    return found


BillingOf = Annotated[Billing, Depends(_billing)]
TenantQuery = Annotated[
    str | None,
    Query(alias="tenant", max_length=128, description="Slug or id; your own organisation where left out."),
]


@router.post(
    "/api/v1/usage/events",
    tags=["usage"],
    response_model=documents.Verdicts,
    openapi_extra=schemas.documented_batch(),
)
async def send_events(
    request: Request, billing: BillingOf, principal: Annotated[Principal, Depends(require("usage:write"))]
) -> Response:
    """Send usage. Every event gets its own verdict; what is `accepted` is durable when you read this.

    An event sent again is accepted again and counted once: its identity is organisation, `source`
    and `id`. A void (`headrace.usage.void.v1`) takes an event out of all sums again, and a checkpoint
    (`headrace.usage.checkpoint.v1`) says what a producer has sent, so that GET /api/v1/usage/producers
    can name what is missing. Honours `Idempotency-Key`.
    """
    async with billing.ingest.slot(principal):
        body = await billing.ingest.body(read(request, max_bytes=schemas.MAX_BYTES))
        values = schemas.batch_of(await parsed(body, max_bytes=schemas.MAX_BYTES))
        return await billing.ingest.take(principal, values, Repeatable.of(request, principal.subject, body))


@router.post(
    "/api/v1/usage/replacements",
    tags=["usage"],
    status_code=201,
    response_model=documents.UsageReplacement,
    openapi_extra=schemas.documented_replacement(),
)
async def replace_event(
    request: Request, billing: BillingOf, principal: Annotated[Principal, Depends(require("usage:write"))]
) -> Response:
    """Void one event and send another in its place, under an id of its own: both or neither. An event has one
    successor: to correct again, replace that one. A void of an event that never landed lands as quarantined.
    Honours `Idempotency-Key`."""
    async with billing.ingest.slot(principal):
        body = await billing.ingest.body(read(request, max_bytes=65_536))
        wanted = decode(parse(body), schemas.Replacement)
        repeatable = Repeatable.of(request, principal.subject, body)
        return await billing.ingest.replace(principal, wanted, wanted.event, repeatable)


@router.post(
    "/api/v1/usage/imports",
    tags=["usage"],
    status_code=201,
    response_model=documents.UsageImport,
    openapi_extra=documented(schemas.NewImport),
)
async def register_import(
    request: Request, billing: BillingOf, principal: Annotated[Principal, Depends(require("usage:import"))]
) -> Response:
    """Declare old usage before sending it: events of this source and period that carry `importid` may
    be older than 400 days."""
    body = await read(request, max_bytes=16_384)
    declared = schemas.check_import(decode(parse(body), schemas.NewImport))
    return await billing.ingest.register(principal, declared, Repeatable.of(request, principal.subject, body))


async def _asked(
    since: Annotated[
        datetime | None, Query(alias="from", description="With zone; widened to the full hour or day.")
    ] = None,
    until: Annotated[
        datetime | None, Query(alias="to", description="Exclusive; widened to the full hour or day.")
    ] = None,
    grain: Annotated[Grain, Query(description="One sum a meter, or a cell for each hour or day.")] = "total",
    meter: Annotated[str | None, Query(max_length=128)] = None,
) -> Callable[[str], Question]:
    return lambda tenant_id: question(tenant_id, grain, since, until, meter)


@router.get("/api/v1/usage", tags=["usage"])
async def usage(
    billing: BillingOf,
    principal: Annotated[Principal, Depends(require("usage:read"))],
    asked: Annotated[Callable[[str], Question], Depends(_asked)],
    tenant: TenantQuery = None,
) -> documents.Usage:
    """Usage until now: what is published plus what arrived since. `live` is false while the latter is
    not known completely; `as_of` says up to which records of the topic the answer goes."""
    return await billing.quota.answer(asked(await billing.tenants.resolve(principal, tenant)))


@router.get("/api/v1/meters", tags=["usage"])
async def meters(_: Annotated[Principal, Depends(require())]) -> documents.Meters:
    """What can be metered."""
    return schemas.meters_document()


@dataclass(frozen=True, slots=True)
class PriceQuery:
    """Query of `GET /api/v1/prices`: which of the book, and which page of it."""

    meter: Annotated[str | None, Query(max_length=128)] = None
    provider: Annotated[str | None, Query(max_length=256, description="Of the price's dimensions.")] = None
    model: Annotated[str | None, Query(max_length=256, description="Of the price's dimensions.")] = None
    after: Annotated[str, Query(max_length=128, description="Prices behind the one with this id.")] = ""
    limit: Annotated[int, Query(ge=1, le=1000, description="How many prices.")] = 100


@router.get("/api/v1/prices", tags=["billing"])
async def prices(
    billing: BillingOf,
    principal: Annotated[Principal, Depends(require("billing:read"))],
    query: Annotated[PriceQuery, Depends()],
    tenant: TenantQuery = None,
) -> documents.Prices:
    """The price book: list prices and your own, each with its model and tiers."""
    asked = {"meter": query.meter, "provider": query.provider, "model": query.model}
    wanted = {name: value for name, value in asked.items() if value is not None}
    tenant_id = await billing.tenants.resolve(principal, tenant)
    return await billing.money.prices(tenant_id, wanted, after=query.after, limit=query.limit)


@router.get("/api/v1/billing/invoices/draft", tags=["billing"])
async def draft_invoice(
    billing: BillingOf,
    principal: Annotated[Principal, Depends(require("billing:read"))],
    tenant: TenantQuery = None,
) -> documents.DraftInvoice:
    """All usage that is not invoiced yet, priced hour by hour and rounded once a line."""
    return await billing.money.draft(await billing.tenants.resolve(principal, tenant))


@router.get("/api/v1/billing/invariants", tags=["billing"])
async def invariants(
    billing: BillingOf,
    principal: Annotated[Principal, Depends(require("billing:read"))],
    tenant: TenantQuery = None,
    period: Annotated[
        str | None,
        Query(max_length=32, description="A month, such as `2026-03`: its meters, hours against days."),
    ] = None,
) -> documents.Invariants:
    """Where every record went: landed = counted + duplicates + quarantined + rejected, by partition and by
    organisation, and what must agree with it at the lake version and slice that it names. The owner of the
    platform who names no organisation sees all records.

    Fates are of all records, whatever `period` says: one that could not be read belongs to no month. Quantities
    and events are those of the month, in which usage took place whenever it landed.
    """
    month = None if period is None else month_query(period)
    if tenant is None and (principal.platform_owner or principal.kind == "system"):
        return await billing.invariants.of(None, month)
    return await billing.invariants.of(await billing.tenants.resolve(principal, tenant), month)
