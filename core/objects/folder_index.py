"""The index of objects on a local folder: rows of `object_version`, one writer of a key at a time."""

import hashlib
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from core.objects.api import ObjectInfo, PreconditionFailedError

_COLUMNS: Final = "bucket, key, version, size, sha256, latest, deleted"
FIND: Final = f"select {_COLUMNS}, blob from object_version where bucket = :bucket and key = :key and "
"""Rows of one key; a condition follows."""
PAGE: Final = (
    f"select {_COLUMNS}, sequence from object_version where bucket = :bucket and key >= :prefix "
    "and starts_with(key, :prefix) and "
)
"""Rows below a prefix; condition and order follow."""

_DEMOTE: Final = text(
    "update object_version set latest = false where bucket = :bucket and key = :key and latest"
)
_PROMOTE: Final = text(
    "update object_version set latest = true where bucket = :bucket and key = :key and not latest and sequence = "
    "(select max(sequence) from object_version where bucket = :bucket and key = :key)"
)
_REMOVE: Final = text(
    "delete from object_version where bucket = :bucket and key = :key and version = :version returning blob"
)
_INSERT: Final = text(
    "insert into object_version (bucket, key, version, latest, deleted, size, sha256, blob) "
    "values (:bucket, :key, :version, true, :deleted, :size, :sha256, :blob)"
)


def info(row: Any) -> ObjectInfo:
    return ObjectInfo(row.bucket, row.key, row.version, row.size, row.sha256, row.latest, row.deleted)


async def enter(
    connection: AsyncConnection, wanted: ObjectInfo, blob: str, *, if_absent: bool
) -> tuple[ObjectInfo, str | None]:
    """Make the blob the latest of its key; returns it and the blob that it replaced for good.

    Raises:
        PreconditionFailedError: with `if_absent` where an object is there.
    """
    where = {"bucket": wanted.bucket, "key": wanted.key}
    versioned = await _lock(connection, wanted.bucket, wanted.key)
    latest = (await connection.execute(text(f"{FIND} latest"), where)).one_or_none()
    if if_absent and latest is not None and not latest.deleted:
        raise PreconditionFailedError(
            f"object {wanted.bucket}/{wanted.key} exists already; nothing was written"
        )
    replaced = None
    if versioned:
        wanted = replace(wanted, version=str(uuid7()))
        await connection.execute(_DEMOTE, where)
    elif latest is not None:
        replaced = latest.blob
        await connection.execute(_REMOVE, where | {"version": ""})
    await _insert(connection, wanted, blob)
    return wanted, replaced


async def leave(connection: AsyncConnection, bucket: str, key: str, version: str | None) -> list[str]:
    """Delete a key or a version; returns the blobs that are not needed any more."""
    where = {"bucket": bucket, "key": key}
    versioned = await _lock(connection, bucket, key)
    if version is None and versioned:
        await connection.execute(_DEMOTE, where)
        await _insert(connection, ObjectInfo(bucket, key, str(uuid7()), 0, "", deleted=True), None)
        return []
    rows = await connection.execute(_REMOVE, where | {"version": version or ""})
    blobs = [row.blob for row in rows if row.blob is not None]
    await connection.execute(_PROMOTE, where)
    return blobs


async def _lock(connection: AsyncConnection, bucket: str, key: str) -> bool:
    """One writer of a key at a time until the transaction ends; returns whether the bucket is versioned."""
    digest = hashlib.sha256(f"object\0{bucket}\0{key}".encode()).digest()
    lock = int.from_bytes(digest[:8], signed=True)
    await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": lock})
    return bool(
        await connection.scalar(
            text("select versioned from object_bucket where name = :bucket"), {"bucket": bucket}
        )
    )


async def _insert(connection: AsyncConnection, entry: ObjectInfo, blob: str | None) -> None:
    await connection.execute(
        _INSERT,
        {
            "bucket": entry.bucket,
            "key": entry.key,
            "version": entry.version,
            "deleted": entry.deleted,
            "size": entry.size,
            "sha256": entry.sha256,
            "blob": blob,
        },
    )
