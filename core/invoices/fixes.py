"""Price fixes: what corrected prices change in closed service periods, first shown, then posted.

A dry run compares rate(usage, prices as of now) with rate(usage, prices as they were charged) for each
closed period and keeps every difference. A person approves; applying posts exactly what the dry run kept,
one adjustment a period, once. Usage that landed late is no part of it: it is adjusted by itself.

What passes a safety bound (`bounds.py`) is parked: a person must accept each reason by name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.database import Database, tenant
from core.decimals import total
from core.ids import new_id
from core.invoices import bounds, difference, fix_store, periods, store
from core.invoices.archive import Archive
from core.invoices.document import Document
from core.invoices.fix_store import Fix, Item
from core.invoices.issuing import (
    InvoiceError,
    OvertakenError,
    edges_of,
    issue,
    make_document,
    refuse_unless_conserved,
    unpriced_of,
)
from core.invoices.prices import charged_at
from core.invoices.store import Issued
from core.prices import Books
from core.rating import ServicePeriod, rate

ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Applied:
    """`posted` by this call; `documents` of the fix altogether."""

    fix: Fix
    posted: int
    documents: int


class Fixes:
    def __init__(self, app: Database, system: Database, archive: Archive) -> None:
        self._app, self._system, self._archive = app, system, archive
        self._books = Books()

    async def propose(self, by: str, *, tenants: Sequence[str] | None = None) -> Fix:
        """The dry run, over all tenants or some. Writes nothing to invoices.

        Raises:
            InvoiceError: `published_went_back`, `prices_went_back`, `not_conserved`.
            core.rating.MixedCurrencyError
        """
        async with self._system.writer() as connection:
            revision: int = await connection.scalar(text("select coalesce(max(revision), 0) from price"))
            charged = (
                (
                    await connection.execute(
                        text(
                            "select distinct tenant_id from invoice where cast(:some as text[]) is null "
                            "or tenant_id = any(cast(:some as text[])) order by 1"
                        ),
                        {"some": None if tenants is None else list(tenants)},
                    )
                )
                .scalars()
                .all()
            )
        items = [item for one in charged for item in await self._compare(one, revision)]
        reasons = tuple(sorted({reason for item in items for reason in item.reasons}))
        fix = new_id("fix")
        totals = _totals(items)
        async with self._system.writer() as connection:
            await fix_store.add(connection, fix, revision, tenants, reasons, totals, items, by)
            await _record(
                connection,
                "price_fix.propose",
                by,
                fix,
                {"items": str(len(items)), "state": "parked" if reasons else "proposed"},
            )
            return await fix_store.find(connection, fix)

    async def decide(self, fix_id: str, by: str, *, approve: bool, accept: Iterable[str] = ()) -> Fix:
        """Approve (every reason why it was parked must be accepted by name) or reject.

        Raises:
            InvoiceError: `not_found`, `price_fix_decided`, `price_fix_parked`.
        """
        async with self._system.writer() as connection:
            fix = await fix_store.find(connection, fix_id, lock=True)
            if fix.state not in {"proposed", "parked"}:
                raise InvoiceError("price_fix_decided", f"The price fix is {fix.state} already.")
            missing = sorted(set(fix.reasons) - set(accept))
            if approve and missing:
                raise InvoiceError(
                    "price_fix_parked",
                    f"The price fix is parked for {', '.join(missing)}: look at its lines; if they are meant, accept each "
                    "reason by name.",
                )
            await connection.execute(
                text(
                    "update price_fix set state = :state, decided_by = :by, decided_at = now(), "
                    "accepted = cast(:accepted as text[]) where id = :id"
                ),
                {
                    "id": fix_id,
                    "state": "approved" if approve else "rejected",
                    "by": by,
                    "accepted": list(fix.reasons) if approve else [],
                },
            )
            action = "price_fix.approve" if approve else "price_fix.reject"
            await _record(
                connection, action, by, fix_id, {"accepted": ",".join(fix.reasons) if approve else ""}
            )
            return await fix_store.find(connection, fix_id)

    async def apply(self, fix_id: str, by: str) -> Applied:
        """Post what the dry run kept. Again posts nothing; after a crash it posts the rest.

        Raises:
            InvoiceError: `not_found`, `price_fix_not_approved`, `price_fix_stale`, `not_conserved`, `busy`,
                `archive_ahead`.
        """
        async with self._system.writer() as connection:
            fix = await fix_store.find(connection, fix_id)
            items = await fix_store.items_of(connection, fix_id)
        if fix.state not in {"approved", "applied"}:
            raise InvoiceError(
                "price_fix_not_approved", f"The price fix is {fix.state}; a person must approve it first."
            )
        if stale := [item for item in items if await self._post(fix, item, by, dry_run=True) is None]:
            raise InvoiceError(
                "price_fix_stale",
                f"{len(stale)} of {len(items)} service periods were charged at other prices since the dry run, the first of "
                f"{stale[0].tenant} ({periods.name(stale[0].period)}); nothing was posted. Make a new dry run.",
            )
        results = [await self._post(fix, item, by, dry_run=False) for item in items]
        if overtaken := results.count(None):
            raise InvoiceError(
                "price_fix_stale",
                f"{overtaken} of {len(items)} service periods were charged at other prices meanwhile, {results.count(True)} "
                "are posted. Make a new dry run for those that are not.",
            )
        posted = results.count(True)
        async with self._system.writer() as connection:
            if fix.state == "approved":
                await connection.execute(
                    text(
                        "update price_fix set state = 'applied', applied_by = :by, applied_at = now() "
                        "where id = :id and state = 'approved'"
                    ),
                    {"id": fix_id, "by": by},
                )
                await _record(
                    connection,
                    "price_fix.apply",
                    by,
                    fix_id,
                    {"posted": str(posted), "items": str(len(items))},
                )
            return Applied(await fix_store.find(connection, fix_id), posted, len(items))

    async def _compare(self, tenant_id: str, revision: int) -> list[Item]:
        """What the tenant's closed periods would change by, at its prices as of `revision`."""
        with tenant(tenant_id):
            async with self._app.writer() as connection:
                known = await self._books.of(connection, tenant_id)
                book = known.as_of(revision)
                found = list[Item]()
                documents = await store.issued(connection)
                trailing = bounds.trailing_average(one.document for one in documents)
                by_period: dict[ServicePeriod, list[Issued]] = {}
                for one in documents:
                    by_period.setdefault(one.period, []).append(one)
                revisions = {
                    period: charged_at([one.document for one in of], known)
                    for period, of in by_period.items()
                }
                touched = [period for period, known_at in revisions.items() if known_at < book.revision]
                if touched:
                    await refuse_unless_conserved(connection, tenant_id, None)
                for period in touched:
                    of, known_at = by_period[period], revisions[period]
                    charged = max(one.document.price_revision for one in of)
                    pieces, landed = await store.usage(connection, edges_of(known.recorded), within=period)
                    if landed is None:
                        raise InvoiceError(
                            "published_went_back", "No usage is published any more; publish it first."
                        )
                    usage = [piece.usage for piece in pieces]
                    before = difference.charges(rate(usage, book.as_of(known_at), period))
                    rated = rate(usage, book, period)
                    lines = difference.difference(before, difference.charges(rated), "")
                    if lines:
                        currency = rated.currency or of[-1].document.currency
                        found.append(
                            Item(
                                tenant_id, period, of[0].document.number, charged, landed, currency,
                                Decimal(difference.sums(lines, currency)[1]), bounds.reasons(lines, trailing), lines,
                                unpriced_of(rated),
                            )
                        )  # fmt: skip
                return found

    async def _post(self, fix: Fix, item: Item, by: str, *, dry_run: bool) -> bool | None:
        """Post an item; false where it is posted already, None where it is stale. Raises: InvoiceError `busy`,
        `not_conserved`."""
        if not dry_run:
            await self._archive.refuse_if_ahead(item.tenant)
        for _ in range(ATTEMPTS):
            try:
                with tenant(item.tenant):
                    async with self._app.writer() as connection:
                        last = await store.last_number(connection)
                        of = [
                            one.document
                            for one in await store.issued(connection, within=item.period)
                            if one.period == item.period
                        ]
                        if any(one.price_fix == fix.id for one in of):
                            return False
                        if max(one.price_revision for one in of) != item.from_revision:
                            return None
                        document = await _document(connection, fix, item, last)
                        await issue(connection, document, last, by, dry_run=dry_run)
                        if dry_run:
                            return False
            except OvertakenError:
                continue
            await self._archive.copy_soon(item.tenant)
            return True
        raise InvoiceError(
            "busy", "Other documents are being issued; apply the fix again, it goes on where it was."
        )


async def _document(connection: AsyncConnection, fix: Fix, item: Item, last: int) -> Document:
    document_id = new_id("inv")
    lines = [replace(line, id=f"{document_id}:{n}") for n, line in enumerate(item.lines, 1)]
    return await make_document(
        connection, item.tenant, last, document_id, item.period, "price_fix", lines, item.currency, item.landed,
        unpriced=item.unpriced, price_revision=fix.price_revision, adjusts=item.adjusts, price_fix=fix.id,
    )  # fmt: skip


def _totals(items: Iterable[Item]) -> dict[str, str]:
    by_currency: dict[str, list[Decimal]] = {}
    for item in items:
        by_currency.setdefault(item.currency or "", []).append(item.total)
    return {currency: format(total(amounts), "f") for currency, amounts in sorted(by_currency.items())}


async def _record(
    connection: AsyncConnection, action: str, by: str, fix: str, detail: dict[str, str]
) -> None:
    await audit.record(
        connection,
        action=action,
        actor=by,
        tenant_id=audit.NO_TENANT,
        target=fix,
        outcome="success",
        detail=detail,
    )
