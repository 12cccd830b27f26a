"""Draft, closing, adjustments and issued documents, as the routes need them."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from core.database import Database, tenant
from core.invoices import store
from core.invoices.archive import ArchiveAheadError
from core.invoices.document import Document, number_of
from core.invoices.issue import Draft, Invoices
from core.invoices.issuing import InvoiceError, Outcome
from core.invoices.store import Issued
from core.objects.api import ObjectStoreUnavailableError
from core.rating import MixedCurrencyError, ServicePeriod
from services.billing.invoices.documents import InvoiceSummary
from services.common.errors import Problem, not_found, unavailable
from services.common.paging import Page, listing

_ID: Final = re.compile(r"inv_[0-9a-f-]{36}", re.ASCII)


class InvoiceHandlers:
    def __init__(self, app: Database, invoices: Invoices) -> None:
        self._app, self._invoices = app, invoices

    async def draft(self, tenant_id: str) -> Draft:
        """Raises: Problem 409."""
        async with refusals():
            return await self._invoices.draft(tenant_id)

    async def close(self, tenant_id: str, period: ServicePeriod, by: str, *, dry_run: bool) -> Outcome:
        """Raises: Problem 409, 503."""
        async with refusals():
            return await self._invoices.close(tenant_id, period, by, dry_run=dry_run)

    async def adjust(
        self, tenant_id: str, period: ServicePeriod | None, by: str, *, dry_run: bool
    ) -> list[Outcome]:
        """Raises: Problem 409, 503."""
        async with refusals():
            return await self._invoices.adjust(tenant_id, by, period=period, dry_run=dry_run)

    async def get(self, tenant_id: str, name: str) -> Issued:
        """The document with this id or number. Raises: Problem 404."""
        number = number_of(name)
        found = None
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                if number is not None:
                    found = await store.by_number(connection, number)
                elif _ID.fullmatch(name):
                    found = await store.by_id(connection, name)
        if found is None:
            raise not_found("invoice")
        return found

    async def page(self, tenant_id: str, page: Page) -> dict[str, Any]:
        with tenant(tenant_id):
            async with self._app.reader() as connection:
                found = await store.page(
                    connection,
                    fetch=page.fetch,
                    after=page.after,
                    before=page.before,
                    ascending=page.order == "asc",
                )
        return listing([summary(one.document, one.sha256) for one in found], page)


def summary(document: Document, sha256: str) -> InvoiceSummary:
    """A document without its lines."""
    return {
        "id": document.id,
        "object": document.object,
        "status": document.status,
        "number": document.number,
        "reason": document.reason,
        "adjusts": document.adjusts,
        "price_fix": document.price_fix,
        "service_period": {"start": document.service_period.start, "end": document.service_period.end},
        "currency": document.currency,
        "total": document.total,
        "lines": len(document.lines),
        "lake_version": document.lake_version,
        "generation": document.generation,
        "slice": document.slice,
        "price_revision": document.price_revision,
        "issued_at": document.issued_at,
        "sha256": sha256,
    }


def plain(value: Any) -> Any:
    """A document or a part of it as plain data."""
    return msgspec.to_builtins(value)


@asynccontextmanager
async def refusals() -> AsyncIterator[None]:
    """What stops an invoice, as problems."""
    try:
        yield
    except InvoiceError as error:
        raise Problem(409, error.code, "Not issued", str(error)) from None
    except MixedCurrencyError as error:
        raise Problem(409, "mixed_currency", "Prices in several currencies", str(error)) from None
    except ArchiveAheadError as error:
        raise Problem(409, "archive_ahead", "Not issued", f"{error}.") from None
    except ObjectStoreUnavailableError:
        raise unavailable("The archive of invoices") from None


def headers(content_sha256: str) -> Mapping[str, str]:
    """Of an answer that holds an issued document."""
    return {"etag": f'"{content_sha256}"', "cache-control": "private, no-cache"}
