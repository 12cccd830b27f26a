"""New records of the tables of `eventlog` as they are committed, without a group.

A notice that commits with the records wakes the tail; it then asks once for all its partitions.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final

from core.eventlog import headers
from core.eventlog.api import Bounds, LogUnavailableError, OffsetOutOfRangeError, Record, TopicChangedError
from core.eventlog.postgres_connections import Connections
from core.eventlog.postgres_group import FETCH
from core.log import Logger

_log = Logger(__name__)

_RECORDS: Final = 2_000
_BYTES: Final = 4_000_000
"""A batch takes of each partition at most so many records and (about) so many bytes."""
_ASK_SECONDS: Final = 5.0
"""Asked again after so long even without a notice: that a topic was deleted is told by none."""
_AWAY_PAUSE: Final = 0.1


async def tail(
    connections: Connections,
    topic: str,
    positions: Mapping[int, int],
    reference: Callable[[], Awaitable[int]],
) -> AsyncGenerator[list[Record], None]:
    """Implements `core.eventlog.api.EventLog.tail`; `reference` asks for the topic's key now."""
    ref = await reference()
    at = dict(positions)
    news = asyncio.Event()

    def wake(payload: str) -> None:
        if payload in {"", topic}:
            news.set()

    connections.subscribe(wake)
    away = False
    try:
        while True:
            news.clear()
            try:
                batch = await _fetch(connections, topic, ref, at)
                if batch is None:
                    if await reference() != ref:
                        raise TopicChangedError(f"topic {topic!r} was made anew; ask for its id again")
                    raise ValueError(f"topic {topic!r} has not all of the partitions {sorted(at)}")
            except LogUnavailableError as error:
                if not away:
                    _log.warn("event log away, the tail waits", topic=topic, reason=str(error))
                away = True
                await asyncio.sleep(_AWAY_PAUSE)
                continue
            away = False
            if batch:
                yield batch
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_SECONDS):
                    await news.wait()
    finally:
        connections.unsubscribe(wake)


async def _fetch(connections: Connections, topic: str, ref: int, at: dict[int, int]) -> list[Record] | None:
    """What stands behind the positions, which are moved on; None where a partition is not there."""
    wanted = list(at)
    positions = [at[partition] for partition in wanted]
    rows = await connections.fetch(
        FETCH, [ref] * len(wanted), wanted, positions, _RECORDS, _BYTES, patience=0
    )
    records: list[Record] = []
    found: set[int] = set()
    refused: OffsetOutOfRangeError | None = None
    for rank, low, high, off, ms, key, value, column in rows:
        partition = wanted[rank - 1]
        found.add(partition)
        if off is None:
            if not low <= at[partition] <= high:
                refused = OffsetOutOfRangeError(topic, partition, at[partition], Bounds(low, high))
            continue
        if off != at[partition]:
            continue
        at[partition] = off + 1
        records.append(
            Record(topic, partition, off, key, value, ms, headers.decode(column) if column else ())
        )
    if len(found) < len(wanted):
        return None
    if refused is not None and not records:
        raise refused
    return records
