"""As much of an installation as a slice needs: an event log, PostgreSQL, a lake and an index."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from deltalake.fs import DeltaStorageHandler

from assets.usage import schema
from assets.usage.evidence import evidence
from assets.usage.generation import index_folder, usage_lake
from assets.usage.landing import land
from assets.usage.lineage import check
from assets.usage.objects import record
from assets.usage.progress import next_slice, published_offsets, published_slice
from assets.usage.publish import publish
from assets.usage.rollup import daily, roll_up, rolled_slice
from core.content import digest
from core.database import dsn
from core.eventlog import open_eventlog
from core.eventlog.api import Bounds, NewRecord
from core.eventlog.bulk import read_slice
from core.lake import Lake
from core.lake.objects import content
from core.objects import open_objects
from core.settings import DatabaseSettings, EventLogSettings, ObjectSettings
from core.topology import TOPICS
from quality import gates
from tests.assets.usage.lake import imports

PUBLISHED = (
    "usage_cell", "usage_element", "usage_conservation", "usage_watermark", "usage_publication", "usage_object", "usage_hold", "usage_purge",
    "landing_loss", "usage_quarantine", "usage_promotion", "usage_generation", "usage_gate",
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """Settings of the parts, and what runs do with them."""

    database: DatabaseSettings
    eventlog: EventLogSettings
    objects: ObjectSettings
    state: Path

    def lake(self) -> Lake:
        return usage_lake(self.objects, self.database)

    def reset(self) -> None:
        """An empty topic with a new id, nothing published, and a bucket."""
        asyncio.run(self._reset())
        self.sql(f"truncate {', '.join(PUBLISHED)}", owner=True)

    async def _reset(self) -> None:
        async with open_objects(self.objects, self.database) as objects:
            await objects.ensure_bucket("lake", versioned=False)
        async with open_eventlog(self.eventlog, self.database) as log:
            await log.ensure_topics([TOPICS[schema.TOPIC]])
            await log.delete_topic(schema.TOPIC)
            await log.ensure_topics([TOPICS[schema.TOPIC]])

    def send(self, values: Iterable[bytes], *, key: str = "org_a|") -> None:
        self.append([NewRecord(schema.TOPIC, key.encode(), value) for value in values])

    def append(self, records: Sequence[NewRecord]) -> None:
        async def work() -> None:
            async with open_eventlog(self.eventlog, self.database) as log:
                await log.append(records)

        asyncio.run(work())

    def bounds(self) -> dict[int, Bounds]:
        async def work() -> dict[int, Bounds]:
            async with open_eventlog(self.eventlog, self.database) as log:
                return await log.bounds(schema.TOPIC)

        return asyncio.run(work())

    def land(self, *, most: int = 500_000) -> bool:
        """Land one slice, as a run does; False where there is nothing to land."""
        lake = self.lake()
        check(lake, self.database)
        piece = next_slice(lake, self.eventlog, self.database, schema.TOPIC, schema.EVENTS, most=most)
        if piece is None:
            return False
        land(
            lake,
            index_folder(self.state, lake.generation),
            piece,
            read_slice(self.eventlog, self.database, piece, headers=False),
            imports,
        )
        record(lake, self.database)
        return True

    def publish(self) -> None:
        """Roll up, judge and publish what has landed, as a run does."""
        lake = self.lake()
        roll_up(lake)
        problems = self.problems(lake)
        assert not problems, problems
        daily(lake)
        publish(lake, self.database)

    def problems(self, lake: Lake) -> list[str]:
        """What the gate says of what is rolled up and not published."""
        first, last = published_slice(self.database) + 1, rolled_slice(lake)
        if last < first:
            return []
        found = evidence(lake, first, last)
        return gates.problems(found) + gates.contiguous(
            found.conservation, published_offsets(self.database, lake)
        )

    def carry(self, *, most: int = 500_000) -> int:
        """Slice after slice until nothing is left; returns how many."""
        slices = 0
        while self.land(most=most):
            self.publish()
            slices += 1
        return slices

    def sql(
        self, statement: str, values: Sequence[Any] = (), *, owner: bool = False
    ) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(dsn(self.database, "owner" if owner else "system"))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def damage(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Write other bytes where an object of `usage_events` lies."""
        self.put(path, change(content(self.lake(), schema.EVENTS, path)))

    def put(self, path: str, data: bytes) -> None:
        """An object of `usage_events` has these bytes."""
        stream = self._store(self.lake())._handler.open_output_stream(path)
        stream.write(data)
        stream.close()

    def lose(self, path: str) -> None:
        """An object is gone from the store."""
        self._store(self.lake()).delete_file(path)

    def _store(self, lake: Lake) -> Any:
        return DeltaStorageHandler(lake.uri(schema.EVENTS), lake.options())

    def cells(self) -> str:
        """Hash of the published cells."""
        return digest(
            self.sql(
                "select tenant_id, grain, meter, period_start, dimensions_key, quantity, events from usage_cell"
            )
        )
