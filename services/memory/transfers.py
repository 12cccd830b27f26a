"""Bytes of documents on their way into the object store: streamed, bounded, checked, then queued."""

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from core.database import Database, tenant
from core.objects.api import ObjectInfo, ObjectStore, ObjectStoreError, ObjectStoreUnavailableError
from services.common.body import too_large
from services.common.errors import Problem, not_found, unavailable
from services.memory import schemas, store, uploads, usage
from services.memory.documents import queued

BUCKET: Final = "knowledge"


class Transfers:
    """
    Args:
        max_bytes: largest document.
    """

    def __init__(
        self, database: Database, objects: ObjectStore, internal_key: bytes, *, max_bytes: int
    ) -> None:
        self._database, self._objects = database, objects
        self._key, self._max_bytes = internal_key, max_bytes

    async def take(self, token: str, declared: str, body: AsyncIterator[bytes]) -> schemas.Uploaded:
        """Store the bytes of the version that the token names, and queue it.

        The same bytes again are answered alike: whoever lost the answer may send them again.

        Args:
            declared: the request's Content-Length; empty where it has none.

        Raises:
            Problem: 403 `upload_refused`, 404 deleted meanwhile, 409 `already_uploaded`, 413
                `body_too_large`, 422 `content_differs`, 503.
        """
        try:
            upload = uploads.verify(token, self._key, now=time.time())
        except uploads.UploadTokenError as error:
            raise Problem(
                403,
                "upload_refused",
                "Upload refused",
                f"This upload address is not valid: {error}. Ask for a new one.",
            ) from None
        with tenant(upload.tenant):
            async with self._database.reader() as connection:
                version = await store.version(connection, upload.document, upload.version)
            if version is None:
                raise not_found("document")
            if version.state in {"failed", "cancelled"}:
                raise Problem(
                    409, "upload_over", "Too late", f"This version is {version.state}; add a new one."
                )
            limit = self._max_bytes if version.size is None or version.state != "uploading" else version.size
            if declared.isdecimal() and int(declared[:20]) > min(limit, self._max_bytes):
                raise too_large(min(limit, self._max_bytes))
            stored = await self._put(version.object_key, body)
            try:
                return await self._queue(upload, version, stored)
            except Problem:
                await self._drop(version.object_key, stored)
                raise

    async def _put(self, key: str, body: AsyncIterator[bytes]) -> ObjectInfo:
        async def bounded() -> AsyncIterator[bytes]:
            size = 0
            async for piece in body:
                size += len(piece)
                if size > self._max_bytes:
                    raise too_large(self._max_bytes)
                if piece:
                    yield piece

        try:
            return await self._objects.put(BUCKET, key, bounded())
        except ObjectStoreUnavailableError:
            raise unavailable("The object store") from None

    async def _queue(
        self, upload: uploads.Upload, expected: store.Version, stored: ObjectInfo
    ) -> schemas.Uploaded:
        if expected.state == "uploading":
            for what, wanted, came in (
                ("size", expected.size, stored.size),
                ("sha256", expected.sha256, stored.sha256),
            ):
                if wanted is not None and wanted != came:
                    raise Problem(
                        422,
                        "content_differs",
                        "Other bytes than announced",
                        f"The {what} is {came}, announced was {wanted}; send the bytes again.",
                    )
        async with self._database.writer() as connection:
            first = await store.stored(
                connection,
                upload.document,
                upload.version,
                size=stored.size,
                sha256=stored.sha256,
                object_version=stored.version,
            )
            if first:
                document = await store.document(connection, upload.document)
                if document is None:
                    raise not_found("document")
                await queued(connection, upload.tenant, document, upload.version)
                await usage.stored(
                    connection, upload.tenant, upload.document, upload.version, stored.size, BUCKET
                )
        async with self._database.reader() as connection:
            version = await store.version(connection, upload.document, upload.version)
        if version is None:
            raise not_found("document")
        if not first:
            if version.sha256 != stored.sha256:
                raise Problem(
                    409,
                    "already_uploaded",
                    "Stored already",
                    "This version has other bytes; add a new version.",
                )
            await self._drop(version.object_key, stored)
        return {
            "document": upload.document,
            "version": upload.version,
            "state": version.state,
            "size": stored.size,
            "sha256": stored.sha256,
        }

    async def _drop(self, key: str, stored: ObjectInfo) -> None:
        """Bytes that nothing refers to; what cannot be removed now goes with the document."""
        with suppress(ObjectStoreError):
            await self._objects.delete(BUCKET, key, version=stored.version)
