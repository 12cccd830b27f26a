"""Money over all organisations: closing a service period, adjusting closed ones, fixing prices. A dry run first.

Billing answers for one organisation at a time; these jobs do the same for many, with the same code.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import Field

from assets.resources import Platform

if TYPE_CHECKING:
    from core.invoices.fixes import Fixes
    from core.invoices.issue import Invoices
    from core.invoices.issuing import Outcome

T = TypeVar("T")
BY = "dagster"
"""Who acts, in the audit log and on the rows."""


class PeriodConfig(dg.Config):
    """A calendar month, and whose."""

    period: str = Field(description="A month (UTC), such as 2026-03.")
    tenants: list[str] = Field(
        default=[], description="Ids of organisations; where empty all that used something or owe a minimum."
    )
    dry_run: bool = Field(default=True, description="Show what would be issued; issue nothing.")


class FixConfig(dg.Config):
    """A dry run over all organisations, or the id of an approved fix to apply."""

    price_fix: str = Field(
        default="", description="Empty: make a dry run. Else the id of an approved fix: apply it."
    )
    tenants: list[str] = Field(default=[], description="Of a dry run: ids of organisations, all where empty.")


@dg.op(description="The final invoice of each organisation for a service period; again issues nothing.")
def close_each(context: dg.OpExecutionContext, config: PeriodConfig, platform: Platform) -> None:
    from core.invoices.periods import month  # noqa: PLC0415

    period = month(config.period)

    async def work(invoices: "Invoices", tenant: str) -> "list[Outcome]":
        return [await invoices.close(tenant, period, BY, dry_run=config.dry_run)]

    _each(context, config, platform, work)


@dg.op(description="Adjustments of a closed period for usage that landed later; again posts nothing.")
def adjust_each(context: dg.OpExecutionContext, config: PeriodConfig, platform: Platform) -> None:
    from core.invoices.periods import month  # noqa: PLC0415

    period = month(config.period)

    async def work(invoices: "Invoices", tenant: str) -> "list[Outcome]":
        return await invoices.adjust(tenant, BY, period=period, dry_run=config.dry_run)

    _each(context, config, platform, work)


@dg.op(description="Corrected prices over closed periods: the dry run, or applying what a person approved.")
def fix_each(context: dg.OpExecutionContext, config: FixConfig, platform: Platform) -> None:
    async def work(_: "Invoices", fixes: "Fixes") -> dict[str, Any]:
        if not config.price_fix:
            fix = await fixes.propose(BY, tenants=config.tenants or None)
            return {"price fix": fix.id, "state": fix.state, "periods": fix.items, "totals": fix.totals,
                    "parked for": list(fix.reasons)}  # fmt: skip
        done = await fixes.apply(config.price_fix, BY)
        return {
            "price fix": done.fix.id,
            "state": done.fix.state,
            "posted": done.posted,
            "totals": done.fix.totals,
        }

    told = _run(platform, work)
    context.add_output_metadata(told)
    context.log.info(f"{told}")


@dg.job(description="Closes a month for all organisations or some. A dry run unless `dry_run` is false.")
def close_period() -> None:
    close_each()


@dg.job(
    description="Posts adjustments for usage that landed after a month was closed. A dry run unless `dry_run` is false."
)
def adjust_period() -> None:
    adjust_each()


@dg.job(
    description="Fixes prices of closed periods. Without the id of an approved fix it is a dry run; approve it with "
    "`headrace price-fix approve`, then run this with its id."
)
def fix_prices() -> None:
    fix_each()


ALL = [close_period, adjust_period, fix_prices]


def _each(
    context: dg.OpExecutionContext,
    config: PeriodConfig,
    platform: Platform,
    work: "Callable[[Invoices, str], Awaitable[list[Outcome]]]",
) -> None:
    """Do `work` for each organisation; those that fail do not hold up the others, and fail the run in the end."""
    from decimal import Inexact  # noqa: PLC0415

    from core.invoices.archive import ArchiveAheadError  # noqa: PLC0415
    from core.invoices.issuing import InvoiceError  # noqa: PLC0415
    from core.prices import PriceError  # noqa: PLC0415
    from core.rating import MixedCurrencyError  # noqa: PLC0415

    rows, failed = list[str](), list[str]()

    async def all_of_them(invoices: "Invoices", _: "Fixes") -> None:
        for tenant in config.tenants or await _charged(platform, config.period):
            try:
                made = await work(invoices, tenant)
            except (InvoiceError, MixedCurrencyError, ArchiveAheadError, PriceError, Inexact) as error:
                failed.append(f"{tenant}: {error or type(error).__name__}")
                continue
            rows.extend(
                f"| {tenant} | {one.document.number} | {one.document.total} {one.document.currency or ''} | {'issued' if one.fresh else one.document.status} |"
                for one in made
            )

    _run(platform, all_of_them)
    table = "\n".join(["| organisation | number | total | |", "|---|---|---:|---|", *rows])
    context.add_output_metadata(
        {
            "documents": len(rows),
            "dry run": config.dry_run,
            "issued": dg.MetadataValue.md(table),
            "failed": len(failed),
        }
    )
    if failed:
        raise dg.Failure(
            f"{len(failed)} organisations were left out: {'; '.join(failed[:10])}", allow_retries=False
        )


def _run(platform: Platform, work: "Callable[[Invoices, Fixes], Awaitable[T]]") -> T:
    from core.database import Database  # noqa: PLC0415
    from core.invoices.archive import Archive  # noqa: PLC0415
    from core.invoices.fixes import Fixes  # noqa: PLC0415
    from core.invoices.issue import Invoices  # noqa: PLC0415
    from core.objects import open_objects  # noqa: PLC0415

    async def with_everything() -> T:
        app, system = Database(platform.database, role="app"), Database(platform.database, role="system")
        try:
            async with open_objects(platform.objects, platform.database) as objects:
                archive = Archive(objects, system)
                return await work(Invoices(app, archive), Fixes(app, system, archive))
        finally:
            await app.close()
            await system.close()

    return asyncio.run(with_everything())


async def _charged(platform: Platform, period: str) -> list[str]:
    """Organisations with usage in a month or an invoice of it (a replay may have left none), or with a price of their
    own that asks for a minimum."""
    from sqlalchemy import text  # noqa: PLC0415

    from core.database import Database  # noqa: PLC0415
    from core.invoices.periods import month  # noqa: PLC0415

    wanted = month(period)
    system = Database(platform.database, role="system")
    try:
        async with system.writer() as connection:
            found = await connection.execute(
                text(
                    "select id from organisation o where exists (select 1 from usage_cell c where c.tenant_id = o.id "
                    "and c.grain = 'day' and c.period_start >= :start and c.period_start < :end) "
                    "or exists (select 1 from invoice i where i.tenant_id = o.id "
                    "and i.period_start >= :start and i.period_start < :end) "
                    "or exists (select 1 from price p where p.tenant_id = o.id and p.minimum > 0 "
                    "and p.valid_from < :end and (p.valid_to is null or p.valid_to > :start)) order by id"
                ),
                {"start": wanted.start, "end": wanted.end},
            )
            return list(found.scalars())
    finally:
        await system.close()
