"""Where the analysts' snapshots are: immutable files in a bucket, a pointer to the latest, proven copies of it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from core.objects import open_objects
from core.objects.api import ObjectInfo, ObjectNotFoundError
from core.settings import DatabaseSettings, ObjectSettings

BUCKET: Final = "snapshots"
POINTER: Final = "latest.json"

KEPT: Final = 3
"""Downloaded snapshots that stay; an older one is downloaded anew where somebody wants it."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What `latest.json` says of the file it names."""

    name: str
    sha256: str
    size: int
    lake_version: int
    schema_version: int
    created_at: str
    price_revision: int = 0
    """Last revision of the price book that its charges were computed with."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


async def read_pointer(objects: ObjectSettings, database: DatabaseSettings) -> Pointer | None:
    """The latest snapshot, None before the first."""
    async with open_objects(objects, database) as store:
        try:
            return Pointer(**json.loads(await store.get(BUCKET, POINTER)))
        except ObjectNotFoundError:
            return None


class NoSnapshotError(Exception):
    """There is no snapshot yet, or it is not what its pointer says."""


async def fetch_latest(objects: ObjectSettings, database: DatabaseSettings, folder: Path) -> Path:
    """Download the latest snapshot into `folder` unless it is there; read-only, checked by SHA-256.

    Raises:
        NoSnapshotError
    """
    pointer = await read_pointer(objects, database)
    if pointer is None:
        raise NoSnapshotError(
            "there is no snapshot yet; it follows the first published usage within about a minute"
        )
    return await _fetch(objects, database, folder, pointer.name, pointer.size, pointer.sha256)


async def kept(objects: ObjectSettings, database: DatabaseSettings) -> list[ObjectInfo]:
    """The snapshots that are there, newest first."""
    async with open_objects(objects, database) as store:
        found = [info async for info in store.list(BUCKET, "usage-")]
    return sorted(found, key=lambda info: info.key.rsplit("-", 1)[-1], reverse=True)


def version_of(info: ObjectInfo) -> int:
    """The lake version that a kept snapshot shows."""
    return int(info.key.split("-")[1])


async def fetch_version(
    objects: ObjectSettings, database: DatabaseSettings, folder: Path, lake_version: int
) -> Path:
    """`fetch_latest` of the newest snapshot that shows this lake version.

    Raises:
        NoSnapshotError: also where it is not kept any more.
    """
    there = await kept(objects, database)
    for info in there:
        if version_of(info) == lake_version:
            return await _fetch(objects, database, folder, info.key, info.size, info.sha256)
    raise NoSnapshotError(
        f"no snapshot of lake version {lake_version} is kept; `headrace snapshot versions` lists the {len(there)} "
        "that are, and docs/analysts.md says how to compute an older one again"
    )


async def _fetch(
    objects: ObjectSettings, database: DatabaseSettings, folder: Path, name: str, size: int, sha256: str
) -> Path:
    path = folder / name
    if path.exists() and path.stat().st_size == size:
        return path
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - one call, before any await of a client
    async with open_objects(objects, database) as store:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            async for chunk in store.stream(BUCKET, path.name):
                digest.update(chunk)
                file.write(chunk)
    if digest.hexdigest() != sha256:
        temporary.unlink()
        raise NoSnapshotError(f"snapshot {path.name} is damaged: its content is not what was written")
    temporary.chmod(0o444)
    temporary.replace(path)
    keep_newest(folder, path.suffix)
    return path


def keep_newest(folder: Path, suffix: str, most: int = KEPT) -> None:
    """Delete all but the newest `most` files of this kind; who has one open keeps reading it."""
    files = sorted(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-most]:
        file.unlink(missing_ok=True)
