"""Price fixes, as their routes need them. They are the owner of the platform's alone."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from core.clock import rfc3339
from core.database import Database
from core.invoices import fix_store
from core.invoices.fix_store import Fix, Item
from core.invoices.fixes import Applied, Fixes
from core.invoices.issuing import InvoiceError
from services.billing.invoices.documents import PriceFix, PriceFixItem
from services.billing.invoices.handlers import plain, refusals
from services.billing.tenants import Tenants
from services.common.auth import Principal
from services.common.errors import Problem, invalid, not_found
from services.common.paging import Page, listing


class NewPriceFix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which organisations to look at."""

    tenants: Annotated[
        list[Annotated[str, Meta(max_length=128)]] | str,
        Meta(description="`all`, or slugs or ids of organisations."),
    ]


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What you decide about is what you have looked at."""

    totals: Annotated[dict[str, str], Meta(description="`totals` of the price fix, as you saw them.")]
    accept: Annotated[
        list[Annotated[str, Meta(max_length=64)]],
        Meta(max_length=16, description="For a parked fix: each of its `reasons` that is meant."),
    ] = []


class PriceFixes:
    def __init__(self, system: Database, fixes: Fixes, tenants: Tenants) -> None:
        self._system, self._fixes, self._tenants = system, fixes, tenants

    async def propose(self, principal: Principal, body: NewPriceFix) -> PriceFix:
        """The dry run. Raises: Problem 403, 404, 409, 422."""
        if not _owns(principal):
            raise _owners_only()
        tenants: list[str] | None = None
        if isinstance(body.tenants, list):
            tenants = [await self._tenants.resolve(principal, one) for one in body.tenants]
        elif body.tenants != "all":
            raise invalid("/tenants", "write `all`, or a list of organisations")
        async with refusals():
            return _fix(await self._fixes.propose(principal.subject, tenants=tenants))

    async def page(self, principal: Principal, page: Page) -> dict[str, Any]:
        """None for others than the platform's owner."""
        if not _owns(principal):
            return listing([], page)
        async with self._system.reader() as connection:
            found = await fix_store.page(
                connection,
                fetch=page.fetch,
                after=page.after,
                before=page.before,
                ascending=page.order == "asc",
            )
        return listing([_fix(one) for one in found], page)

    async def get(self, principal: Principal, fix_id: str) -> PriceFix:
        """Raises: Problem 404."""
        return _fix(await self._find(principal, fix_id))

    async def items(self, principal: Principal, fix_id: str, limit: int, after: str) -> dict[str, Any]:
        """Differences by tenant and period. Raises: Problem 404, 422."""
        await self._find(principal, fix_id)
        async with self._system.reader() as connection:
            found = await fix_store.items_of(connection, fix_id, after=_cursor(after), fetch=limit + 1)
        return listing([_item(one) for one in found], Page(limit=limit))

    async def approve(self, principal: Principal, fix_id: str, body: Seen) -> PriceFix:
        """Raises: Problem 403 for who is no person, 404, 409, 422."""
        _same(await self._find(principal, fix_id), body)
        if principal.kind != "user":
            raise Problem(
                403,
                "person_required",
                "Not allowed",
                "A person approves a price fix: sign in, and use no key.",
            )
        async with refusals():
            return _fix(await self._fixes.decide(fix_id, principal.subject, approve=True, accept=body.accept))

    async def reject(self, principal: Principal, fix_id: str, body: Seen) -> PriceFix:
        """Raises: Problem 404, 409, 422."""
        _same(await self._find(principal, fix_id), body)
        async with refusals():
            return _fix(await self._fixes.decide(fix_id, principal.subject, approve=False))

    async def apply(self, principal: Principal, fix_id: str, body: Seen) -> Applied:
        """Raises: Problem 404, 409, 422, 503."""
        _same(await self._find(principal, fix_id), body)
        async with refusals():
            return await self._fixes.apply(fix_id, principal.subject)

    async def _find(self, principal: Principal, fix_id: str) -> Fix:
        if not _owns(principal):
            raise not_found("price fix")
        try:
            async with self._system.writer() as connection:
                return await fix_store.find(connection, fix_id)
        except InvoiceError:
            raise not_found("price fix") from None


def applied(done: Applied) -> dict[str, Any]:
    return {**_fix(done.fix), "posted": done.posted}


def _owns(principal: Principal) -> bool:
    return principal.platform_owner or principal.kind == "system"


def _owners_only() -> Problem:
    return Problem(
        403, "platform_owner_required", "Not allowed", "Prices are fixed by the owner of the platform."
    )


def _same(fix: Fix, body: Seen) -> None:
    """Raises: Problem 422, where the caller looked at something else."""
    if _amounts(body.totals) != _amounts(fix.totals):
        raise invalid(
            "/totals",
            "these are not the totals of this price fix; read it again, and decide about what it says",
        )


def _amounts(totals: Mapping[str, str]) -> dict[str, Decimal | None]:
    found: dict[str, Decimal | None] = {}
    for currency, amount in totals.items():
        try:
            found[currency] = Decimal(amount)
        except InvalidOperation:
            found[currency] = None
    return found


def _cursor(after: str) -> tuple[str, datetime] | None:
    if not after:
        return None
    tenant, _, start = after.partition(":")
    try:
        at = datetime.fromisoformat(start)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise invalid("/query/after", "no id of an item")
    return tenant, at


def _fix(fix: Fix) -> PriceFix:
    return {
        "id": fix.id,
        "object": "price_fix",
        "state": fix.state,
        "price_revision": fix.price_revision,
        "tenants": None if fix.tenants is None else list(fix.tenants),
        "reasons": list(fix.reasons),
        "totals": fix.totals,
        "items": fix.items,
        "created_by": fix.created_by,
        "created_at": rfc3339(fix.created_at),
        "decided_by": fix.decided_by,
        "decided_at": None if fix.decided_at is None else rfc3339(fix.decided_at),
        "accepted": list(fix.accepted),
        "applied_by": fix.applied_by,
        "applied_at": None if fix.applied_at is None else rfc3339(fix.applied_at),
    }


def _item(item: Item) -> PriceFixItem:
    lines: Sequence[Any] = plain(item.lines)
    return {
        "id": f"{item.tenant}:{rfc3339(item.period.start)}",
        "object": "price_fix_item",
        "tenant": item.tenant,
        "service_period": {"start": rfc3339(item.period.start), "end": rfc3339(item.period.end)},
        "adjusts": item.adjusts,
        "from_revision": item.from_revision,
        "generation": item.landed.generation,
        "slice": item.landed.slice,
        "currency": item.currency,
        "total": format(item.total, "f"),
        "reasons": list(item.reasons),
        "lines": list(lines),
    }
