"""Objects on a local folder: immutable blobs, and an index in PostgreSQL that says what counts.

A put writes `blobs/<bucket>/<xx>/<id>` (temporary, fsync, rename, fsync of the folder) and then one
row. A crash in between leaves a blob that nobody refers to, which `sweep` removes.
"""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from core.database import Database
from core.objects import folder_index as index
from core.objects.api import (
    ObjectCorruptError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStoreUnavailableError,
    PreconditionFailedError,
    check_key,
)
from core.objects.source import PIECE, hash_file, write_all, write_stream
from core.settings import DatabaseSettings, ObjectSettings

PAGE: Final = 1000
SETTLED_SECONDS: Final = 60.0
"""A younger blob may belong to a put that has not entered its row yet."""
ORPHAN_SECONDS: Final = 3600.0
"""A blob without a row is removed when it is older: no put takes so long between the two."""


class FolderObjectStore:
    """Implements `core.objects.api.ObjectStore` (role `system`)."""

    def __init__(self, settings: ObjectSettings, database: DatabaseSettings) -> None:
        self._root = Path(unquote(urlsplit(settings.objects_url).path))
        self._blobs = self._root / "blobs"
        self._incoming = self._root / "incoming"
        self._settings = database
        self._database: Database | None = None

    async def __aenter__(self) -> Self:
        for folder in (self._blobs, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(self._settings, role="system")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._database is not None:
            await self._database.close()
            self._database = None

    async def ensure_bucket(self, bucket: str, *, versioned: bool) -> None:
        await self._run(
            lambda connection: connection.execute(
                text(
                    "insert into object_bucket (name, versioned) values (:name, :versioned) "
                    "on conflict (name) do update set versioned = object_bucket.versioned or excluded.versioned"
                ),
                {"name": bucket, "versioned": versioned},
            )
        )

    async def put(
        self, bucket: str, key: str, data: bytes | Path | AsyncIterator[bytes], *, if_absent: bool = False
    ) -> ObjectInfo:
        check_key(key)
        await self._bucket(bucket)
        blob = f"{bucket}/{os.urandom(1).hex()}/{uuid7()}"
        size, digest = await self._store(blob, data)
        try:
            stored: tuple[ObjectInfo, str | None] = await self._run(
                lambda connection: index.enter(
                    connection, ObjectInfo(bucket, key, "", size, digest), blob, if_absent=if_absent
                )
            )
        except PreconditionFailedError:
            await self._remove(blob)
            raise
        info, replaced = stored
        if replaced:
            await self._remove(replaced)
        return info

    async def get(self, bucket: str, key: str, *, version: str | None = None) -> bytes:
        return b"".join([piece async for piece in self.stream(bucket, key, version=version)])

    async def stream(self, bucket: str, key: str, *, version: str | None = None) -> AsyncIterator[bytes]:
        info, path = await self._find(bucket, key, version)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            # Replaced between the look-up and the open: what is there now was put later.
            info, path = await self._find(bucket, key, version)
            file = await asyncio.to_thread(self._open, info, path)
        digest = hashlib.sha256()
        with file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != info.sha256:
            raise ObjectCorruptError(
                f"{bucket}/{key}: the content's SHA-256 is not the one written; restore it"
            )

    @staticmethod
    def _open(info: ObjectInfo, path: Path) -> Any:
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise ObjectCorruptError(
                f"{info.bucket}/{info.key}: its file {path} is missing; restore it from a backup"
            ) from None

    async def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        return (await self._find(bucket, key, version))[0]

    async def list(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        await self._bucket(bucket)
        after = ""
        while True:
            rows = await self._rows(
                f"{index.PAGE} latest and not deleted and key > :after order by key limit :limit",
                {"bucket": bucket, "prefix": prefix, "after": after, "limit": PAGE},
            )
            for row in rows:
                yield index.info(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].key

    async def versions(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        await self._bucket(bucket)
        after, sequence = "", 0
        while True:
            rows = await self._rows(
                f"{index.PAGE} (key > :after or key = :after and sequence < :sequence) "
                "order by key, sequence desc limit :limit",
                {"bucket": bucket, "prefix": prefix, "after": after, "sequence": sequence, "limit": PAGE},
            )
            for row in rows:
                yield index.info(row)
            if len(rows) < PAGE:
                return
            after, sequence = rows[-1].key, rows[-1].sequence

    async def delete(self, bucket: str, key: str, *, version: str | None = None) -> None:
        await self._bucket(bucket)
        for blob in await self._run(lambda connection: index.leave(connection, bucket, key, version)):
            await self._remove(blob)

    async def sweep(self, older_than: float = ORPHAN_SECONDS) -> None:
        """Remove temporary files and blobs without a row that are older than `older_than` seconds."""
        limit = time.time() - older_than
        for path in await asyncio.to_thread(_older, self._incoming, limit):
            path.unlink(missing_ok=True)
        blobs = {
            str(path.relative_to(self._blobs)): path
            for path in await asyncio.to_thread(_older, self._blobs, limit)
        }
        names = list(blobs)
        for start in range(0, len(names), PAGE):
            for name in await self._unlisted(names[start : start + PAGE]):
                blobs[name].unlink(missing_ok=True)

    async def recover(
        self, bucket: str, key_of: Callable[[bytes], str | None], *, older_than: float = SETTLED_SECONDS
    ) -> int:
        await self._bucket(bucket)
        folder = self._blobs / bucket
        names = [
            str(path.relative_to(self._blobs))
            for path in await asyncio.to_thread(_older, folder, time.time() - older_than)
        ]
        recovered = 0
        for start in range(0, len(names), PAGE):
            for name in await self._unlisted(names[start : start + PAGE]):
                content = await asyncio.to_thread((self._blobs / name).read_bytes)
                key = key_of(content)
                if key is not None:
                    recovered += await self._enter_again(bucket, check_key(key), name, content)
        return recovered

    async def _enter_again(self, bucket: str, key: str, blob: str, content: bytes) -> bool:
        found = ObjectInfo(bucket, key, "", len(content), hashlib.sha256(content).hexdigest())
        try:
            await self._run(lambda connection: index.enter(connection, found, blob, if_absent=True))
        except PreconditionFailedError:
            return False
        return True

    async def _unlisted(self, names: Sequence[str]) -> set[str]:
        """Those of these blobs that no row names."""
        rows = await self._rows(
            "select blob from object_version where blob = any(cast(:blobs as text[]))", {"blobs": list(names)}
        )
        return set(names) - {row.blob for row in rows}

    async def _store(self, blob: str, data: bytes | Path | AsyncIterator[bytes]) -> tuple[int, str]:
        """Write the blob, durable under its final name; returns size and SHA-256."""
        temporary = self._incoming / str(uuid7())
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                if isinstance(data, bytes):
                    size, digest = len(data), hashlib.sha256(data).hexdigest()
                    await asyncio.to_thread(write_all, descriptor, data)
                elif isinstance(data, Path):
                    await asyncio.to_thread(shutil.copyfile, data, temporary)
                    size, digest = await asyncio.to_thread(hash_file, temporary)
                else:
                    size, digest = await write_stream(descriptor, data)
                await asyncio.to_thread(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await asyncio.to_thread(_publish, temporary, self._blobs / blob, self._blobs)
        finally:
            temporary.unlink(missing_ok=True)
        return size, digest

    async def _remove(self, blob: str) -> None:
        await asyncio.to_thread((self._blobs / blob).unlink, missing_ok=True)

    async def _bucket(self, bucket: str) -> None:
        if not await self._rows("select 1 from object_bucket where name = :bucket", {"bucket": bucket}):
            raise ObjectNotFoundError(
                f"bucket {bucket!r} does not exist; buckets are made from core.topology"
            )

    async def _find(self, bucket: str, key: str, version: str | None) -> tuple[ObjectInfo, Path]:
        if version is None:
            rows = await self._rows(f"{index.FIND} latest", {"bucket": bucket, "key": key})
        else:
            rows = await self._rows(
                f"{index.FIND} version = :version", {"bucket": bucket, "key": key, "version": version}
            )
        if not rows or rows[0].deleted:
            which = f"{bucket}/{key}" + (f" version {version}" if version is not None else "")
            raise ObjectNotFoundError(f"object {which} does not exist")
        return index.info(rows[0]), self._blobs / rows[0].blob

    async def _rows(self, statement: str, parameters: Mapping[str, object]) -> Any:
        async def ask(connection: AsyncConnection) -> Any:
            return (await connection.execute(text(statement), parameters)).all()

        return await self._run(ask)

    async def _run(self, work: Callable[[AsyncConnection], Any]) -> Any:
        if self._database is None:
            raise RuntimeError("the object store is not open; use `async with`")
        try:
            async with self._database.writer() as connection:
                return await work(connection)
        except (DBAPIError, OSError) as error:
            raise ObjectStoreUnavailableError(f"the index of the object store failed: {error}") from error


def _publish(temporary: Path, final: Path, root: Path) -> None:
    """Rename and make the name durable, and those of folders that were missing (blocking)."""
    missing = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)
    for folder in dict.fromkeys([final.parent, *(made.parent for made in missing), root]):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _older(folder: Path, limit: float) -> list[Path]:
    """Files below `folder` that were last written before `limit` (blocking)."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime < limit]
