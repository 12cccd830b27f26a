"""Deleted documents leave every store: vectors, bytes with all their versions, derived data. Counted.

Deleting a row's `live_version` hides a document at once; this task does the rest, again and again until
nothing is left, and then says so in the row. Rows stay a while without a name: an indexing run that was
on its way may still write, so what was erased is counted again until no such run can be alive. The rows
of its versions stay as long: only their hashes say where such a run puts text.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from prometheus_client import Counter, Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from core.database import Database
from core.knowledge import derived
from core.log import Logger
from core.objects.api import ObjectInfo, ObjectStore, ObjectStoreError
from core.vectors import Vectors, VectorsError
from services.memory import store

SOURCES: Final = "knowledge"
PAUSE_SECONDS: Final = 5.0
RECONCILE_SECONDS: Final = 300.0
WATCHED: Final = timedelta(hours=6)
"""How long an erased document is counted again: longer than any run of the index."""
FORGET: Final = timedelta(days=8)
"""Rows of erased documents go after this: longer than `agent.events` could bring a memory back."""
UPLOAD_AGE: Final = timedelta(days=1)
AT_ONCE: Final = 200
"""Documents erased in one go, so that what was deleted later waits for few."""
COUNTED: Final = 1000
"""Erased documents counted again in one go; the next ones follow in the next."""

WAITING: Final = Gauge("documents_to_erase", "Deleted documents that are not proven to be gone")
ERASED: Final = Counter("documents_erased", "Deleted documents of which nothing was left when counted")
LEFT_OVERS: Final = Counter("documents_left_over", "Chunks and objects found after their document was erased")

_log = Logger("services.memory.erase")


@dataclass(frozen=True, slots=True)
class Doomed:
    """A deleted document and the hashes of its contents."""

    tenant_id: str
    id: str
    hashes: tuple[str, ...]


class Eraser:
    """
    Args:
        system: role `system`.
    """

    def __init__(self, system: Database, objects: ObjectStore, vectors: Vectors) -> None:
        self._system, self._objects, self._vectors = system, objects, vectors
        self._woken = asyncio.Event()
        self._counted = ("", "")
        """Tenant and id of the erased document that was counted again last."""

    def wake(self) -> None:
        """Something was deleted."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; what is away is waited for."""
        loop = asyncio.get_running_loop()
        reconciled = loop.time() - RECONCILE_SECONDS
        while True:
            self._woken.clear()
            try:
                await self.erase()
                if loop.time() - reconciled >= RECONCILE_SECONDS:
                    await self.reconcile()
                    reconciled = loop.time()
            except (SQLAlchemyError, OSError, ObjectStoreError, VectorsError, TimeoutError) as error:
                _log.warn("erasing waits", error=type(error).__name__, reason=str(error)[:300])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._woken.wait()

    async def erase(self) -> int:
        """Erase what is deleted; returns how many documents were proven to be gone."""
        done = 0
        doomed = await self._doomed("d.erased_at is null", "min(d.deleted_at)", AT_ONCE)
        WAITING.set(len(doomed))
        for one in doomed:
            await self._remove(one)
            left = await self.left(one)
            if left:
                _log.warn("a deleted document is not gone yet", document=one.id, left=left)
                continue
            async with self._system.writer() as connection:
                where = {"tenant_id": one.tenant_id, "id": one.id}
                await connection.execute(
                    text(
                        "update document_version set created_by = '', reason = '', next_attempt_at = null, "
                        "state = case when state = any(:waiting) then 'cancelled' else state end "
                        "where tenant_id = :tenant_id and document_id = :id"
                    ),
                    {**where, "waiting": sorted(store.WAITING)},
                )
                await connection.execute(
                    text(
                        "update document set erased_at = now(), name = '', user_id = case when kind = 'memory' "
                        "then '-' else '' end where tenant_id = :tenant_id and id = :id"
                    ),
                    where,
                )
            ERASED.inc()
            done += 1
        WAITING.set(len(doomed) - done)
        return done

    async def reconcile(self) -> int:
        """Count erased documents again and remove what a late writer left; returns how many had something.
        Also ends uploads that never came and forgets old rows."""
        found = 0
        watched = await self._doomed(
            "d.erased_at > now() - cast(:watched as interval) and (d.tenant_id, d.id) > (:tenant_id, :id)",
            "d.tenant_id, d.id",
            COUNTED,
            {"watched": WATCHED, "tenant_id": self._counted[0], "id": self._counted[1]},
        )
        self._counted = (watched[-1].tenant_id, watched[-1].id) if len(watched) == COUNTED else ("", "")
        for one in watched:
            if left := await self.left(one):
                _log.warn("a late writer left something of a deleted document", document=one.id, left=left)
                LEFT_OVERS.inc(left)
                await self._remove(one)
                found += 1
        async with self._system.writer() as connection:
            await store.give_up_uploads(connection, UPLOAD_AGE)
            await connection.execute(
                text(
                    "delete from document_version v using document d where d.tenant_id = v.tenant_id "
                    "and d.id = v.document_id and d.erased_at < now() - cast(:age as interval)"
                ),
                {"age": WATCHED},
            )
            await connection.execute(
                text("delete from document where erased_at < now() - cast(:age as interval)"), {"age": FORGET}
            )
            await connection.execute(
                text("delete from memory_turn where created_at < now() - cast(:age as interval)"),
                {"age": FORGET},
            )
        return found

    async def left(self, one: Doomed) -> int:
        """Chunks and objects of a document that are still somewhere."""
        chunks = await asyncio.to_thread(self._vectors.count, one.tenant_id, one.id, everywhere=True)
        return chunks + len(await self._sources(one)) + len(await self._derived(one))

    async def _remove(self, one: Doomed) -> None:
        await asyncio.to_thread(self._vectors.delete, one.tenant_id, one.id)
        for info in await self._sources(one):
            await self._objects.delete(SOURCES, info.key, version=info.version)
        for info in await self._derived(one):
            await self._objects.delete(derived.BUCKET, info.key)

    async def _sources(self, one: Doomed) -> list[ObjectInfo]:
        return [info async for info in self._objects.versions(SOURCES, f"{one.tenant_id}/{one.id}/")]

    async def _derived(self, one: Doomed) -> list[ObjectInfo]:
        """What was made of its contents, but for those that another document has too."""
        found: list[ObjectInfo] = []
        for sha256 in one.hashes:
            if not await self._shared(one, sha256):
                prefix = derived.prefix(one.tenant_id, sha256)
                found += [info async for info in self._objects.list(derived.BUCKET, prefix)]
        return found

    async def _shared(self, one: Doomed, sha256: str) -> bool:
        """True where another document of the organisation has the same content."""
        async with self._system.writer() as connection:
            rows = await connection.execute(
                text(
                    """
                    select exists (select 1 from document_version v join document d
                        on d.tenant_id = v.tenant_id and d.id = v.document_id and d.deleted_at is null
                    where v.tenant_id = :tenant_id and v.sha256 = :sha256 and v.document_id <> :id)
                    """
                ),
                {"tenant_id": one.tenant_id, "sha256": sha256, "id": one.id},
            )
            return bool(rows.scalar_one())

    async def _doomed(
        self, which: str, order: str, most: int, parameters: dict[str, Any] | None = None
    ) -> list[Doomed]:
        async with self._system.writer() as connection:
            rows = await connection.execute(
                text(
                    f"""
                    select d.tenant_id, d.id, coalesce(array_agg(distinct v.sha256)
                           filter (where v.sha256 is not null), '{{}}')
                    from document d left join document_version v on v.tenant_id = d.tenant_id and v.document_id = d.id
                    where d.deleted_at is not null and {which}
                    group by d.tenant_id, d.id order by {order} limit :most
                    """
                ),
                {**(parameters or {}), "most": most},
            )
            return [Doomed(row[0], row[1], tuple(row[2])) for row in rows]
