"""Prices into the table, with the audit events that say so, in one transaction (role `system`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now
from core.decimals import canonical
from core.prices.book import EVERYBODY, Price
from core.prices.lists import PriceList
from core.prices.lists.entries import Names
from core.prices.lists.plan import FACTOR, Plan, plan
from core.prices.table import read_prices, record

SYSTEM: Final = "system"


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a list is wanted: see `core.prices.lists.plan.plan`."""

    only: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    factor: Decimal = FACTOR
    names: tuple[Names, ...] = field(default=())
    """Beside those that usage names."""


async def publish(connection: AsyncConnection, declared: Iterable[Price]) -> list[Price]:
    """Record what is declared and not in the table yet; returns the new rows.

    Raises: as `core.prices.table.record`.
    """
    fresh = await record(connection, declared)
    for price in fresh:
        await audit.record(
            connection,
            action="price.publish",
            actor=SYSTEM,
            tenant_id=audit.NO_TENANT if price.tenant == EVERYBODY else price.tenant,
            target=price.id,
            outcome="success",
            detail={
                "meter": price.meter,
                "model": price.model,
                "unit_price": canonical(price.unit_price),
                "per": str(price.per),
            },
        )
    return fresh


async def import_list(
    connection: AsyncConnection, found: PriceList, choice: Choice, *, dry_run: bool
) -> Plan:
    """Compare a list with the book and, unless it is a dry run, record what is not parked.

    One audit event for the whole import: the rows are in the table with their revisions, and the event
    has the hash of the list and how many were taken.

    Raises: as `core.prices.table.record`.
    """
    names = {*await names_in_use(connection), *choice.names}
    made = plan(
        found,
        await read_prices(connection),
        now(),
        names=names,
        only=choice.only,
        accept=choice.accept,
        factor=choice.factor,
    )
    if made.changes and not dry_run:
        fresh = await record(connection, made.prices)
        await audit.record(
            connection,
            action="price.import",
            actor=SYSTEM,
            tenant_id=audit.NO_TENANT,
            target="prices",
            outcome="success",
            detail={
                "sha256": found.sha256,
                "rows": str(len(fresh)),
                "parked": str(len(made.parked)),
            },
        )
    return made


async def names_in_use(connection: AsyncConnection) -> list[Names]:
    """Providers and models that published usage of any tenant names."""
    rows = await connection.execute(
        text(
            "select distinct dimensions->>'provider', dimensions->>'model' from usage_cell "
            "where grain = 'day' and dimensions ? 'provider' and dimensions ? 'model' order by 1, 2"
        )
    )
    return [(row[0], row[1]) for row in rows]
