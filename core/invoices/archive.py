"""The second copy of every issued document, in the bucket `invoices`.

PostgreSQL is where a document is issued; a copy is written right after. If PostgreSQL is put back to an
earlier time, the copies say what was issued since: `readopt` puts the rows back, byte for byte, and until
then nothing is issued for a tenant whose archive is ahead of its rows. A number is never given out twice, nor
from then on a revision of prices that a document names.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from core.database import Database
from core.invoices import store
from core.invoices.document import Document, DocumentError, decode, number_of, sha256
from core.log import Logger
from core.objects.api import ObjectNotFoundError, ObjectStore, PreconditionFailedError
from core.prices.table import go_on_behind

BUCKET: Final = "invoices"
COPY_SECONDS: Final = 10
_BATCH: Final = 100

_log = Logger("invoices")


class ArchiveAheadError(Exception):
    """The archive holds documents that PostgreSQL does not know."""


@dataclass(frozen=True, slots=True)
class Readopted:
    """What `readopt` found. `conflicts` name documents whose number PostgreSQL has given to another since."""

    seen: int
    adopted: tuple[str, ...]
    conflicts: tuple[str, ...]


class Archive:
    """Copies documents (role `system`). `objects` is open."""

    def __init__(self, objects: ObjectStore, system: Database) -> None:
        self._objects, self._system = objects, system

    async def run(self) -> None:
        """Copy whatever is not copied, until cancelled."""
        while True:
            try:
                while await self.copy():
                    pass
            except Exception as error:
                # The store or the database is away: documents wait where they are.
                _log.warn("issued documents wait for their copy", error=type(error).__name__)
            await asyncio.sleep(COPY_SECONDS)

    async def copy_soon(self, tenant_id: str) -> None:
        """Copy this tenant's documents now; where that fails, `run` does it later."""
        try:
            await self.copy(tenant_id)
        except Exception as error:
            _log.warn("a document waits for its copy", tenant=tenant_id, error=type(error).__name__)

    async def copy(self, tenant_id: str = "") -> bool:
        """Copy some documents that have no copy; True where more may be left."""
        async with self._system.writer() as connection:
            rows = (
                await connection.execute(
                    text(
                        """
                        select i.document from invoice i
                        where not exists (select 1 from invoice_copy c
                                          where c.tenant_id = i.tenant_id and c.number = i.number)
                          and (:tenant = '' or i.tenant_id = :tenant)
                        order by i.tenant_id, i.number limit :most
                        """
                    ),
                    {"tenant": tenant_id, "most": _BATCH},
                )
            ).scalars().all()  # fmt: skip
        for content in map(bytes, rows):
            document = decode(content)
            await self._put(key_of(document, content), content)
            async with self._system.writer() as connection:
                await connection.execute(
                    text(
                        "insert into invoice_copy (tenant_id, number) values (:tenant, :number) on conflict do nothing"
                    ),
                    {"tenant": document.tenant, "number": number_of(document.number)},
                )
        return len(rows) == _BATCH

    async def refuse_if_ahead(self, tenant_id: str) -> None:
        """Raises: ArchiveAheadError, where issuing could give out a number for the second time."""
        try:
            await self._objects.recover(BUCKET, _key_in)
            newest = max(
                [_number_in(item.key) async for item in self._objects.list(BUCKET, f"{tenant_id}/")],
                default=0,
            )
        except ObjectNotFoundError:
            return  # the bucket is made with the first copy
        # After the archive: a copy is written behind its row, so what is issued meanwhile is in both or here alone.
        async with self._system.writer() as connection:
            last: int = await connection.scalar(
                text("select coalesce(max(last), 0) from invoice_sequence where tenant_id = :tenant"),
                {"tenant": tenant_id},
            )
        if newest > last:
            raise ArchiveAheadError(
                f"the archive holds documents up to number {newest} of {tenant_id}, PostgreSQL up to {last}: it was put "
                "back to an earlier time. Run `headrace invoices readopt`, then try again"
            )

    async def readopt(self) -> Readopted:
        """Put rows back for archived documents that PostgreSQL does not have. Safe to repeat.

        Raises:
            DocumentError: an archived document is damaged; nothing of its tenant from there on was adopted.
        """
        await self._objects.recover(BUCKET, _key_in)
        seen, adopted, conflicts = 0, list[str](), list[str]()
        async for item in self._objects.list(BUCKET):
            content = await self._objects.get(BUCKET, item.key)
            document = _checked(item.key, content)
            seen += 1
            name = f"{document.tenant} {document.number}"
            async with self._system.writer() as connection:
                known = await connection.scalar(
                    text("select sha256 from invoice where tenant_id = :tenant and number = :number"),
                    {"tenant": document.tenant, "number": number_of(document.number)},
                )
                if known is None:
                    await store.add(connection, document, content, "archive")
                    await go_on_behind(connection, document.price_revision)
                    await connection.execute(
                        text(
                            "insert into invoice_sequence (tenant_id, last) values (:tenant, :number) "
                            "on conflict (tenant_id) do update set last = greatest(invoice_sequence.last, excluded.last)"
                        ),
                        {"tenant": document.tenant, "number": number_of(document.number)},
                    )
                    await connection.execute(
                        text("insert into invoice_copy (tenant_id, number) values (:tenant, :number)"),
                        {"tenant": document.tenant, "number": number_of(document.number)},
                    )
                    adopted.append(name)
                elif known != sha256(content):
                    conflicts.append(name)
        return Readopted(seen, tuple(adopted), tuple(conflicts))

    async def _put(self, key: str, content: bytes) -> None:
        try:
            await self._objects.put(BUCKET, key, content, if_absent=True)
        except ObjectNotFoundError:
            await self._objects.ensure_bucket(BUCKET, versioned=True)
            await self._put(key, content)
        except PreconditionFailedError:
            pass  # another instance was faster: the key holds the hash, so it is the same content


def key_of(document: Document, content: bytes) -> str:
    """`org_…/00000012-<sha256>.json`"""
    return f"{document.tenant}/{number_of(document.number):08d}-{sha256(content)}.json"


def _key_in(content: bytes) -> str | None:
    """The key under which such content belongs; None for what is no issued document."""
    try:
        return key_of(decode(content), content)
    except DocumentError:
        return None


def _number_in(key: str) -> int:
    return int(key.rpartition("/")[2].partition("-")[0])


def _checked(key: str, content: bytes) -> Document:
    try:
        document = decode(content)
    except DocumentError as error:
        raise DocumentError(f"archived document {key}: {error}") from None
    if key_of(document, content) != key:
        raise DocumentError(f"archived document {key} lies under a key that is not its own: it was changed")
    return document
