"""Objects on any S3 server, through the `minio` SDK in threads.

The SHA-256 travels as user metadata. A put carries an id of its own, so that a conditional put whose
answer was lost can tell its own object from another's.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote_plus, urlsplit
from xml.etree.ElementTree import fromstring

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED
from minio.datatypes import Object, Part
from minio.error import MinioException, S3Error
from minio.versioningconfig import VersioningConfig
from minio.xml import findtext
from urllib3.exceptions import HTTPError
from uuid_utils import uuid7

from core.objects.api import (
    ObjectCorruptError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStoreUnavailableError,
    PreconditionFailedError,
    check_key,
)
from core.objects.source import PIECE, Source, source
from core.settings import ObjectSettings

PART: Final = 16 << 20
"""Bytes of a part; an object above this size goes up in parts."""
THREADS: Final = 8

_MISSING: Final = frozenset(
    {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "MethodNotAllowed", "ResourceNotFound"}
)
_REFUSED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
_SHA256: Final = "x-amz-meta-sha256"
_PUT_ID: Final = "x-amz-meta-put-id"

T = TypeVar("T")
_Headers = dict[str, str | list[str] | tuple[str]]


class _Client(Minio):
    """Adds what the SDK cannot say: conditional puts, and listings in the server's order with metadata."""

    def put_source(self, bucket: str, key: str, content: Source, put_id: str, *, if_absent: bool) -> str:
        """Upload; returns the version (blocking)."""
        metadata: _Headers = {
            "Content-Type": "application/octet-stream",
            _SHA256: content.sha256,
            _PUT_ID: put_id,
        }
        condition: _Headers = {"If-None-Match": "*"} if if_absent else {}
        if content.size <= PART:
            body = content.read(0, content.size)
            return self._put_object(bucket, key, body, metadata | condition).version_id or ""
        upload = self._create_multipart_upload(bucket, key, metadata)
        try:
            parts = [
                Part(number, self._upload_part(bucket, key, content.read(start, PART), None, upload, number))
                for number, start in enumerate(range(0, content.size, PART), 1)
            ]
            return self._complete(bucket, key, upload, parts, condition)
        except BaseException:
            self._abort_multipart_upload(bucket, key, upload)
            raise

    def _complete(self, bucket: str, key: str, upload: str, parts: list[Part], condition: _Headers) -> str:
        body = "".join(
            f'<Part><PartNumber>{part.part_number}</PartNumber><ETag>"{part.etag}"</ETag></Part>'
            for part in parts
        )
        response = self._execute(
            "POST",
            bucket,
            key,
            body=f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>".encode(),
            headers={"Content-Type": "application/xml", **condition},
            query_params={"uploadId": upload},
        )
        # S3 may say 200 first and find out afterwards.
        if b"<Error>" in response.data:
            raise S3Error.fromxml(response)
        return response.headers.get("x-amz-version-id") or ""

    def page(
        self, bucket: str, prefix: str, *, versions: bool, marker: _Headers
    ) -> tuple[list[Object], _Headers | None]:
        """Up to 1000 entries, and the marker of the next page (blocking).

        The SDK's own listing gives delete markers apart from versions, so their order is lost.
        """
        query: _Headers = {"encoding-type": "url", "max-keys": "1000", "prefix": prefix, "metadata": "true"}
        query |= {"versions": ""} if versions else {"list-type": "2"}
        response = self._execute("GET", bucket, query_params=query | marker)
        root = fromstring(response.data.decode())  # noqa: S314 - the answer of the configured server
        entries = [
            Object.fromxml(element, bucket, tag == "DeleteMarker", "url")
            for element in root
            if (tag := element.tag.rpartition("}")[2]) in {"Contents", "Version", "DeleteMarker"}
        ]
        if (findtext(root, "IsTruncated") or "").lower() != "true":
            return entries, None
        if not versions:
            return entries, {"continuation-token": findtext(root, "NextContinuationToken", True) or ""}
        return entries, {
            "key-marker": unquote_plus(findtext(root, "NextKeyMarker", True) or ""),
            "version-id-marker": findtext(root, "NextVersionIdMarker") or "",
        }


class S3ObjectStore:
    """Implements `core.objects.api.ObjectStore`."""

    def __init__(self, settings: ObjectSettings) -> None:
        if settings.objects_access_key is None or settings.objects_secret_key is None:
            raise ValueError("S3 needs HEADRACE_OBJECTS_ACCESS_KEY and HEADRACE_OBJECTS_SECRET_KEY")
        url = urlsplit(settings.objects_url)
        self._prefix = settings.objects_bucket_prefix
        self._where = settings.objects_url
        self._region = settings.objects_region
        self._http = urllib3.PoolManager(
            maxsize=THREADS,
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=urllib3.Retry(total=4, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
        )
        self._client = _Client(
            endpoint=url.netloc,
            access_key=settings.objects_access_key.get_secret_value(),
            secret_key=settings.objects_secret_key.get_secret_value(),
            secure=url.scheme == "s3s",
            region=settings.objects_region,
            http_client=self._http,
        )
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)
        self._http.clear()

    async def ensure_bucket(self, bucket: str, *, versioned: bool) -> None:
        def work(name: str) -> None:
            try:
                self._client.make_bucket(bucket_name=name, location=self._region)
            except S3Error as error:
                if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
            if versioned:
                self._client.set_bucket_versioning(bucket_name=name, config=VersioningConfig(ENABLED))

        await self._call(work, self._prefix + bucket)

    async def put(
        self, bucket: str, key: str, data: bytes | Path | AsyncIterator[bytes], *, if_absent: bool = False
    ) -> ObjectInfo:
        check_key(key)
        put_id = str(uuid7())
        async with source(data) as content:
            try:
                version = await self._call(
                    partial(self._client.put_source, if_absent=if_absent),
                    self._prefix + bucket, key, content, put_id,
                )  # fmt: skip
            except PreconditionFailedError:
                # The SDK repeats a request whose answer was lost: what is there may be ours.
                version = await self._own(bucket, key, put_id)
            return ObjectInfo(bucket, key, version, content.size, content.sha256)

    async def _own(self, bucket: str, key: str, put_id: str) -> str:
        stat = await self._stat(bucket, key, None)
        if stat.metadata.get(_PUT_ID) != put_id:
            raise PreconditionFailedError(f"object {bucket}/{key} exists already; nothing was written")
        return str(stat.version_id or "")

    async def get(self, bucket: str, key: str, *, version: str | None = None) -> bytes:
        return b"".join([piece async for piece in self.stream(bucket, key, version=version)])

    async def stream(self, bucket: str, key: str, *, version: str | None = None) -> AsyncIterator[bytes]:
        response = await self._call(
            lambda: self._client.get_object(
                bucket_name=self._prefix + bucket, object_name=key, version_id=version or None
            ),
        )
        expected = response.headers.get(_SHA256, "")
        digest = hashlib.sha256()
        try:
            while piece := await self._call(response.read, PIECE):
                digest.update(piece)
                yield piece
        finally:
            response.close()
            response.release_conn()
        if expected and digest.hexdigest() != expected:
            raise ObjectCorruptError(
                f"{bucket}/{key}: the content's SHA-256 is not the one written; restore it"
            )

    async def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        stat = await self._stat(bucket, key, version)
        return ObjectInfo(
            bucket,
            key,
            stat.version_id or "",
            stat.size,
            stat.metadata.get(_SHA256, ""),
            latest=version is None,
        )

    async def _stat(self, bucket: str, key: str, version: str | None) -> Any:
        try:
            return await self._call(
                lambda: self._client.stat_object(
                    bucket_name=self._prefix + bucket, object_name=key, version_id=version or None
                ),
            )
        except ObjectNotFoundError:
            raise ObjectNotFoundError(
                f"object {bucket}/{key}" + (f" version {version}" if version else "") + " does not exist"
            ) from None

    async def list(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for entry in self._entries(bucket, prefix, versions=False):
            yield await self._info(bucket, entry)

    async def versions(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for entry in self._entries(bucket, prefix, versions=True):
            yield await self._info(bucket, entry)

    async def _entries(self, bucket: str, prefix: str, *, versions: bool) -> AsyncIterator[Any]:
        marker: _Headers | None = {}
        while marker is not None:
            page, marker = await self._call(
                partial(self._client.page, versions=versions, marker=marker), self._prefix + bucket, prefix
            )
            for entry in page:
                yield entry

    async def _info(self, bucket: str, entry: Any) -> ObjectInfo:
        metadata = {name.lower(): value for name, value in (entry.metadata or {}).items()}
        digest = metadata.get(_SHA256, "")
        version = "" if entry.version_id in {None, "null"} else entry.version_id
        latest = entry.is_latest is None or entry.is_latest == "true"
        if not metadata and not entry.is_delete_marker:
            # Only MinIO tells metadata in a listing.
            digest = (await self.head(bucket, entry.object_name, version=version or None)).sha256
        return ObjectInfo(
            bucket, entry.object_name, version, entry.size or 0, digest, latest, entry.is_delete_marker
        )

    async def delete(self, bucket: str, key: str, *, version: str | None = None) -> None:
        try:
            await self._call(
                lambda: self._client.remove_object(
                    bucket_name=self._prefix + bucket, object_name=key, version_id=version or None
                ),
            )
        except ObjectNotFoundError as error:
            if isinstance(error.__cause__, S3Error) and error.__cause__.code == "NoSuchBucket":
                raise

    async def sweep(self) -> None:
        """Nothing to do: the server ends broken uploads by itself (MinIO after a day, others by a lifecycle rule)."""

    async def recover(self, bucket: str, key_of: Callable[[bytes], str | None]) -> int:
        """Nothing to do: the server's list is what lies there."""
        return 0

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        if self._threads is None:
            raise RuntimeError("the object store is not open; use `async with`")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))
        except S3Error as error:
            what = f"{error.bucket_name or ''}/{error.object_name or ''}".rstrip("/")
            if error.code in _MISSING:
                raise ObjectNotFoundError(f"{what} does not exist ({error.code})") from error
            if error.code in _REFUSED:
                raise PreconditionFailedError(f"{what} exists already; nothing was written") from error
            raise ObjectStoreUnavailableError(
                f"the object store at {self._where} refused {what}: {error}"
            ) from error
        except (HTTPError, MinioException, OSError) as error:
            raise ObjectStoreUnavailableError(
                f"the object store at {self._where} does not answer: {error}"
            ) from error
