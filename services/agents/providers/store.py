"""SQL of tenants' providers. Every function works on the caller's transaction, inside `with tenant(…):`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from sqlalchemy import Row, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.agents.providers.model import Kind

_COLUMNS: Final = "id, name, kind, base_url, api_key, models, prices, created_by, created_at, updated_at"


class NameTakenError(Exception):
    """The tenant has a provider of this name."""


@dataclass(frozen=True, slots=True)
class StoredProvider:
    id: str
    name: str
    kind: Kind
    base_url: str
    api_key: bytes
    """Ciphertext of `core.security.fields`."""
    models: tuple[str, ...]
    prices: dict[str, dict[str, str]]
    created_by: str
    created_at: datetime
    updated_at: datetime


async def page(
    connection: AsyncConnection, limit: int, after: str, before: str, *, newest_first: bool
) -> list[StoredProvider]:
    """The tenant's providers by age; the bounds are ids, outside the page, in reading order."""
    above, below = (before, after) if newest_first else (after, before)
    rows = await connection.execute(
        text(
            f"select {_COLUMNS} from provider where (:above = '' or id > :above) and (:below = '' or id < :below)"
            f" order by id {'desc' if newest_first else 'asc'} limit :limit"
        ),
        {"above": above, "below": below, "limit": limit},
    )
    return [_provider(row) for row in rows]


async def everything(connection: AsyncConnection) -> list[StoredProvider]:
    rows = await connection.execute(text(f"select {_COLUMNS} from provider order by name"))
    return [_provider(row) for row in rows]


async def find(connection: AsyncConnection, provider_id: str, *, lock: bool = False) -> StoredProvider | None:
    row = (
        await connection.execute(
            text(f"select {_COLUMNS} from provider where id = :id {'for update' if lock else ''}"),
            {"id": provider_id},
        )
    ).one_or_none()
    return None if row is None else _provider(row)


async def insert(connection: AsyncConnection, tenant_id: str, values: dict[str, Any]) -> StoredProvider:
    """Raises: NameTakenError."""
    try:
        row = (
            await connection.execute(
                text(
                    "insert into provider (tenant_id, id, name, kind, base_url, api_key, models, prices, created_by)"
                    " values (:tenant, :id, :name, :kind, :base_url, :api_key, cast(:models as text[]),"
                    f" cast(:prices as jsonb), :created_by) returning {_COLUMNS}"
                ),
                {**values, "tenant": tenant_id, "prices": orjson.dumps(values["prices"]).decode()},
            )
        ).one()
    except IntegrityError as error:
        if "provider_tenant_id_name_key" in str(error.orig):
            raise NameTakenError from None
        raise
    return _provider(row)


async def update(connection: AsyncConnection, provider_id: str, values: dict[str, Any]) -> StoredProvider:
    row = (
        await connection.execute(
            text(
                "update provider set base_url = :base_url, api_key = :api_key, models = cast(:models as text[]),"
                f" prices = cast(:prices as jsonb), updated_at = now() where id = :id returning {_COLUMNS}"
            ),
            {**values, "id": provider_id, "prices": orjson.dumps(values["prices"]).decode()},
        )
    ).one()
    return _provider(row)


async def delete(connection: AsyncConnection, provider_id: str) -> bool:
    rows = await connection.execute(text("delete from provider where id = :id"), {"id": provider_id})
    return bool(rows.rowcount)


def _provider(row: Row[Any]) -> StoredProvider:
    return StoredProvider(**{**row._mapping, "models": tuple(row.models), "api_key": bytes(row.api_key)})
