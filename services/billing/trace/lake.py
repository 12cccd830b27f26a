"""The lookup as billing asks it."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from core.contracts import lookup
from core.contracts.usage import dimensions_text
from core.invoices.store import Landed, Piece
from core.rating import ServicePeriod
from services.common.errors import busy, unavailable
from services.common.principal import HEADER, sign, system

T = TypeVar("T")
_TIMEOUT: Final = aiohttp.ClientTimeout(total=28)
"""Below the patience of the gateway, whose answer would say less."""
_HOUR: Final = timedelta(hours=1)


class Lake:
    """Asks with the signature of the platform; every method raises Problem 503 where it is away."""

    def __init__(self, http: aiohttp.ClientSession, url: str, internal_key: bytes) -> None:
        self._http, self._url, self._key = http, url, internal_key

    async def usage(
        self,
        tenant: str,
        landed: Landed,
        edges: Iterable[datetime],
        *,
        meter: str | None = None,
        period: ServicePeriod | None = None,
    ) -> list[Piece]:
        """What `core.invoices.store.usage` reads from published cells, added up from the landed rows as of a
        generation and slice."""
        asked = lookup.Sums(
            tenant, landed.generation, landed.slice, sorted(set(edges)), meter,
            None if period is None else period.start, None if period is None else period.end,
        )  # fmt: skip
        found = await self._ask("sums", asked, lookup.Summed)
        return [
            Piece(
                one.meter, one.dimensions, Decimal(one.quantity), one.events, one.first, one.last, one.element
            )
            for one in found.pieces
        ]

    async def rows(
        self,
        tenant: str,
        landed: Landed,
        meter: str,
        pieces: Sequence[Piece],
        *,
        behind: int,
        after: tuple[int, int, int] | None,
        fetch: int,
    ) -> list[lookup.Row]:
        """The rows of these pieces in slices behind one, in the order they landed."""
        selections = selections_of(pieces)
        asked = lookup.Rows(tenant, landed.generation, landed.slice, meter, selections, behind, after, fetch)
        return (await self._ask("rows", asked, lookup.Listed)).rows if selections else []

    async def event(self, tenant: str, generation: int, source: str, event_id: str) -> lookup.Place:
        return await self._ask("event", lookup.Event(tenant, generation, source, event_id), lookup.Place)

    async def record(
        self, tenant: str, generation: int, topic_id: str | None, partition: int, offset: int
    ) -> lookup.Place:
        asked = lookup.Record(tenant, generation, partition, offset, topic_id)
        return await self._ask("record", asked, lookup.Place)

    async def fates(self, tenant: str, landed: Landed, period: ServicePeriod) -> list[lookup.Fate]:
        asked = lookup.Fates(tenant, landed.generation, landed.slice, period.start, period.end)
        return (await self._ask("fates", asked, lookup.Counted)).fates

    async def _ask(self, what: str, question: Any, answer: type[T]) -> T:
        headers = {HEADER: sign(system("billing"), self._key), "content-type": "application/json"}
        body = msgspec.json.encode(question)
        try:
            async with self._http.post(
                f"{self._url}/internal/usage/{what}", data=body, headers=headers, timeout=_TIMEOUT
            ) as reply:
                content = await reply.read()
                if reply.status == 503 and _code(content) == lookup.BUSY:
                    raise busy("The lookup", lookup.BUSY)
                if reply.status != 200:
                    raise unavailable("The lookup")
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise unavailable("The lookup") from None
        return msgspec.json.decode(content, type=answer)


def _code(content: bytes) -> object:
    try:
        return msgspec.json.decode(content, type=dict[str, object]).get("code")
    except msgspec.DecodeError:
        return None


def selections_of(pieces: Iterable[Piece]) -> list[lookup.Selection]:
    """The hours of pieces by dimensions, those that overlap or touch as one: elements of one piece share them, and a
    row is listed once for each selection that names it."""
    spans = sorted((dimensions_text(piece.dimensions), piece.first, piece.last + _HOUR) for piece in pieces)
    found = list[lookup.Selection]()
    for dimensions, since, until in spans:
        before = found[-1] if found else None
        if before is not None and before.dimensions == dimensions and since <= before.until:
            found[-1] = msgspec.structs.replace(before, until=max(before.until, until))
        else:
            found.append(lookup.Selection(dimensions, since, until))
    return found
