"""What memory meters: tokens embedded for questions, bytes of documents stored."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import now
from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.messaging import outbox

SOURCE: Final = "memory"


async def stored(
    connection: AsyncConnection, tenant: str, document: str, version: int, size: int, bucket: str
) -> None:
    """Bytes of one version, in the transaction that stores it. An empty one counts nothing."""
    if size:
        await _record(connection, tenant, "storage.bytes", size, {"bucket": bucket}, document, str(version))


async def embedded(connection: AsyncConnection, tenant: str, request: str, model: str, tokens: int) -> None:
    """Tokens embedded for one request; the same request twice counts once."""
    dimensions = {"provider": "local", "model": model}
    await _record(connection, tenant, "embedding.tokens", tokens, dimensions, request)


async def _record(
    connection: AsyncConnection,
    tenant: str,
    meter: str,
    quantity: int,
    dimensions: Mapping[str, str],
    *identity: str,
) -> None:
    event = UsageEvent(
        id=derived_id(meter, tenant, *identity),
        source=SOURCE,
        time=now(),
        tenant=tenant,
        data=UsageData(meter, str(quantity), dict(dimensions)),
        type=TYPE,
        specversion="1.0",
    )
    await outbox.enqueue(connection, [NewRecord("usage.records", event.key, event.encode())], tenant)
