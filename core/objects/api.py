"""The seam of the object store: put, get, conditional put, list, versions, delete. Nothing more."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_KEY = re.compile(r"[^\x00-\x1f\x7f\\]{1,1024}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    bucket: str
    key: str
    version: str
    """Opaque; differs for every put of a versioned bucket. Empty in an unversioned one."""
    size: int
    sha256: str
    """Lower-case hex of the content, computed by us while it was written. Empty for a delete marker
    and for what others put there by themselves."""
    latest: bool = True
    deleted: bool = False
    """True for a delete marker."""


class ObjectStoreError(Exception):
    """Base of what the store refuses; the message says what, which and what to do."""


class ObjectNotFoundError(ObjectStoreError):
    """No such bucket, key or version."""


class PreconditionFailedError(ObjectStoreError):
    """A conditional put found another object there; nothing was written."""


class ObjectCorruptError(ObjectStoreError):
    """What was read is not what was written: its SHA-256 differs."""


class ObjectStoreUnavailableError(ObjectStoreError):
    """The store does not answer. A put may or may not have happened; putting again is safe."""


class ObjectStore(Protocol):
    """`async with` starts and closes it. Streams are bounded in memory whatever the object's size.

    Keys are 1 to 1024 bytes of UTF-8, their parts between `/` neither empty nor `.` nor `..`. Where
    `a` is a key, `a/…` should be none: MinIO leaves it out of listings.
    Every call may raise ObjectStoreUnavailableError, and ObjectNotFoundError for an unknown bucket.
    """

    async def __aenter__(self) -> "ObjectStore": ...
    async def __aexit__(self, *exc: object) -> None: ...

    async def ensure_bucket(self, bucket: str, *, versioned: bool) -> None:
        """Create the bucket where it is missing; switch versioning on, never off."""
        ...

    async def put(
        self, bucket: str, key: str, data: bytes | Path | AsyncIterator[bytes], *, if_absent: bool = False
    ) -> ObjectInfo:
        """Store whole or not at all, durable when it returns.

        Raises: PreconditionFailedError with `if_absent` where the key exists, ValueError for a key
        that no store takes.
        """
        ...

    async def get(self, bucket: str, key: str, *, version: str | None = None) -> bytes:
        """The whole content. Raises: ObjectNotFoundError, ObjectCorruptError."""
        ...

    def stream(self, bucket: str, key: str, *, version: str | None = None) -> AsyncIterator[bytes]:
        """The content in pieces. Raises as `get`; ObjectCorruptError after the last piece."""
        ...

    async def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        """Raises: ObjectNotFoundError, also for a delete marker."""
        ...

    def list(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Latest, not deleted objects, by key (order of UTF-8 bytes)."""
        ...

    def versions(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """All versions and delete markers, by key, newest first."""
        ...

    async def delete(self, bucket: str, key: str, *, version: str | None = None) -> None:
        """Without a version: a delete marker (versioned) or gone (unversioned). With one: that version
        is gone, and the newest that is left becomes the latest. What is not there is no error."""
        ...

    async def sweep(self) -> None:
        """Remove what broken puts have left behind. S3 servers do it by themselves, a folder needs the call."""
        ...

    async def recover(self, bucket: str, key_of: Callable[[bytes], str | None]) -> int:
        """List again what lies in a bucket without being listed: a folder whose index was put back to an
        earlier time. S3 servers keep their own index, so there is nothing to do.

        Args:
            key_of: the key that a content says it belongs under; None leaves it alone. A key that is
                listed stays as it is.

        Returns:
            How many were listed again.
        """
        ...


def check_key(key: str) -> str:
    """Return `key`. Raises: ValueError where some store could not keep it."""
    parts = key.split("/")
    if not _KEY.fullmatch(key) or len(key.encode()) > 1024 or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(
            f"object key {key[:100]!r}: give 1 to 1024 bytes whose parts between `/` are neither empty nor `.` nor `..`, "
            "without control characters and backslashes"
        )
    return key
