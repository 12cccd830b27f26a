"""Prices into the table, with the audit events that say so, in one transaction (role `system`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now, rfc3339
from core.decimals import canonical
from core.log import Logger
from core.prices.book import EVERYBODY, Price, in_force
from core.prices.lists import PriceList
from core.prices.lists.entries import Names
from core.prices.lists.plan import FACTOR, Plan, plan
from core.prices.table import append, lock, read_prices, record

SYSTEM: Final = "system"

_log = Logger("prices")


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a list is wanted: see `core.prices.lists.plan.plan`."""

    only: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    factor: Decimal = FACTOR
    names: tuple[Names, ...] = field(default=())
    """Beside those that usage names."""


async def publish(
    connection: AsyncConnection, declared: Iterable[Price], *, back: bool = False
) -> list[Price]:
    """Record what is declared and was never in the table; returns the new rows.

    A row that was in the table and that a later one corrected stays corrected: a start with an older file, or
    with one that does not know what an import ended, must not change prices. `back` records it nevertheless.

    Raises: as `core.prices.table.record`.
    """
    await lock(connection)
    known, wanted = await read_prices(connection), list(declared)
    corrected = [] if back else _corrected(wanted, known)
    for price in corrected:
        _log.warn(
            "a declared price was corrected since and is not recorded again",
            tenant=price.tenant,
            meter=price.meter,
            dimensions=dict(price.dimensions),
            valid_from=rfc3339(price.valid_from),
            unit_price=canonical(price.unit_price),
            action="declare what the table says, or a price with a later valid_from; if the declared one is to stand "
            "again, run `headrace prices record`",
        )
    fresh = await append(connection, [price for price in wanted if price not in corrected], known)
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


def _corrected(declared: Iterable[Price], known: Iterable[Price]) -> list[Price]:
    """What of `declared` was recorded before a row with other terms and the same key."""
    rows = list(known)
    recorded = {(price.key, price.terms) for price in rows}
    standing = {(price.key, price.terms) for price in in_force(rows)}
    replaced = recorded - standing
    return [price for price in declared if (price.key, price.terms) in replaced]
