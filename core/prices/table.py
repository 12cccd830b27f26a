"""The table `price`: every price that was ever declared, in the order it was recorded."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.decimals import canonical
from core.ids import new_id
from core.prices.book import EVERYBODY, Price, PriceBook, PriceError, Tier, in_force

_LOCK: Final = 0x68725F7072696365
"""Advisory lock of the recorder ("hr_price"): two instances that start together record once."""


COLUMNS: Final = (
    "tenant_id, meter, dimensions, unit_price, per, currency, valid_from, valid_to, revision, id, "
    "model, tiers, included, minimum, recorded_at"
)
"""What `price_of` takes, in its order."""


def price_of(row: Sequence[Any]) -> Price:
    """A price from a row of `COLUMNS`."""
    tiers = tuple(
        Tier(
            None if tier["up_to"] is None else Decimal(tier["up_to"]),
            Decimal(tier["unit_price"]),
            Decimal(tier["fee"]),
        )
        for tier in _decoded(row[11])
    )
    return Price(
        tenant=row[0],
        meter=row[1],
        dimensions=tuple(sorted(_decoded(row[2]).items())),
        unit_price=row[3],
        per=row[4],
        currency=row[5],
        valid_from=row[6],
        valid_to=row[7],
        revision=row[8],
        id=row[9],
        model=row[10],
        tiers=tiers,
        included=row[12],
        minimum=row[13],
        recorded_at=row[14],
    )


def tiers_json(tiers: Iterable[Tier]) -> str:
    """Tiers as the column holds them: a JSON list whose numbers are decimal text."""
    return json.dumps(
        [
            {
                "up_to": None if tier.up_to is None else canonical(tier.up_to),
                "unit_price": canonical(tier.unit_price),
                "fee": canonical(tier.fee),
            }
            for tier in tiers
        ]
    )


async def read_prices(connection: AsyncConnection) -> list[Price]:
    """All rows the role may see: the list prices and the tenant's own (role `app`), or everybody's."""
    rows = await connection.execute(text(f"select {COLUMNS} from price order by revision"))
    return [price_of(row) for row in rows]


class Books:
    """Books of tenants in one process. List prices may be thousands of rows: they are read again only when
    some were recorded, a tenant's own with every book."""

    def __init__(self) -> None:
        self._listed = PriceBook(EVERYBODY, ())

    async def of(self, connection: AsyncConnection, tenant_id: str) -> PriceBook:
        """The book that this tenant's usage falls under, as the transaction sees it (role `app` as the
        tenant, or `system`)."""
        # Another task may read newer ones meanwhile, which this transaction does not see.
        listed = self._listed
        rows = (
            await connection.execute(
                text(
                    f"select {COLUMNS} from price where tenant_id = :tenant "
                    "or (tenant_id = '*' and (select coalesce(max(revision), 0) from price where tenant_id = '*') "
                    "<> :known) order by revision"
                ),
                {"tenant": tenant_id, "known": listed.revision},
            )
        ).all()
        prices = [price_of(row) for row in rows]
        if any(price.tenant == EVERYBODY for price in prices):
            self._listed = listed = PriceBook(EVERYBODY, prices)
        return PriceBook(tenant_id, prices, listed=listed)


async def lock(connection: AsyncConnection) -> None:
    """Let nobody else record until the transaction ends."""
    await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


async def go_on_behind(connection: AsyncConnection, revision: int) -> None:
    """Give out no revision up to this one any more (role `system`)."""
    await lock(connection)
    await connection.execute(
        text(
            "select setval('price_revision_seq', :revision) from price_revision_seq where last_value < :revision"
        ),
        {"revision": revision},
    )


async def record(connection: AsyncConnection, declared: Iterable[Price]) -> list[Price]:
    """Append what the file says and the table does not yet; return the appended rows (role `system`).

    Nothing is changed or removed: a row that left the file stays in force until a later one or its
    own `valid_to` ends it.

    Raises:
        PriceError: the file changed its currency; amounts already printed would be compared with others.
    """
    await lock(connection)
    return await append(connection, declared, await read_prices(connection))


async def append(
    connection: AsyncConnection, declared: Iterable[Price], recorded: Iterable[Price]
) -> list[Price]:
    """As `record`, by whoever holds the lock and has read the table."""
    known = in_force(recorded)
    terms = {price.key: price.terms for price in known}
    fresh = [replace(price, id=new_id("price")) for price in declared if terms.get(price.key) != price.terms]
    currencies = {price.currency for price in known} | {price.currency for price in fresh}
    if len(currencies) > 1:
        raise PriceError(
            f"the price book would mix {', '.join(sorted(currencies))}; an installation bills in one currency"
        )
    if fresh:
        await connection.execute(
            text(
                "insert into price (id, tenant_id, meter, dimensions, unit_price, per, currency, valid_from, valid_to, "
                "model, tiers, included, minimum) "
                "values (:id, :tenant, :meter, cast(:dimensions as jsonb), :unit_price, :per, :currency, :valid_from, "
                ":valid_to, :model, cast(:tiers as jsonb), :included, :minimum)"
            ),
            [
                {
                    "id": price.id,
                    "tenant": price.tenant,
                    "meter": price.meter,
                    "dimensions": json.dumps(dict(price.dimensions)),
                    "unit_price": price.unit_price,
                    "per": price.per,
                    "currency": price.currency,
                    "valid_from": price.valid_from,
                    "valid_to": price.valid_to,
                    "model": price.model,
                    "tiers": tiers_json(price.tiers),
                    "included": price.included,
                    "minimum": price.minimum,
                }
                for price in fresh
            ],
        )
    return fresh


def _decoded(value: Any) -> Any:
    """JSON, which one driver decodes and another gives as text."""
    return json.loads(value) if isinstance(value, str) else value
