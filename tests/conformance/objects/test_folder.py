"""The object store on a local folder."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from core.database import Database
from core.objects.api import ObjectCorruptError, ObjectStore
from core.objects.folder import FolderObjectStore
from core.settings import DatabaseSettings, ObjectSettings
from tests.conformance.objects.suite import PLAIN, VERSIONED, ObjectStoreSuite, collect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects with blank")


@pytest.fixture(scope="module")
def objects_settings(folder: Path) -> ObjectSettings:
    return ObjectSettings(objects_url=folder.as_uri())


@pytest.fixture
def index(postgres: DatabaseSettings) -> DatabaseSettings:
    return postgres


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class TestFolder(ObjectStoreSuite):
    async def test_changed_bytes_are_noticed(self, store: ObjectStore, key: str, folder: Path) -> None:
        await store.put(PLAIN, key, b"precious")
        (blob,) = [path for path in files(folder) if path.read_bytes() == b"precious"]
        blob.write_bytes(b"PRECIOUS")
        with pytest.raises(ObjectCorruptError, match="SHA-256"):
            await store.get(PLAIN, key)
        blob.unlink()
        with pytest.raises(ObjectCorruptError, match="missing"):
            await store.get(PLAIN, key)
        await store.delete(PLAIN, key)

    async def test_sweep_removes_what_no_row_names(self, store: ObjectStore, key: str, folder: Path) -> None:
        assert isinstance(store, FolderObjectStore)
        await store.put(VERSIONED, key, b"kept")
        orphans = [folder / "blobs" / VERSIONED / "00" / "orphan", folder / "incoming" / "half"]
        for orphan in orphans:
            orphan.parent.mkdir(exist_ok=True)
            orphan.write_bytes(b"left behind")
        fresh = folder / "blobs" / VERSIONED / "00" / "fresh"
        fresh.write_bytes(b"a put that is under way")
        for path in files(folder):
            if path != fresh:
                os.utime(path, (time.time() - 7200,) * 2)
        await store.sweep()
        assert [orphan.exists() for orphan in orphans] == [False, False]
        assert fresh.exists()
        assert await store.get(VERSIONED, key) == b"kept"
        await store.sweep(older_than=-1)
        assert not fresh.exists()
        assert await store.get(VERSIONED, key) == b"kept"

    async def test_replaced_and_deleted_content_leaves_the_disk(
        self, store: ObjectStore, key: str, folder: Path
    ) -> None:
        blobs = folder / "blobs"
        before = len(files(blobs))
        for data in (b"1", b"2"):
            await store.put(PLAIN, key, data)
        info = await store.put(VERSIONED, key, b"3")
        assert len(files(blobs)) == before + 2
        await store.delete(PLAIN, key)
        await store.delete(VERSIONED, key)
        assert len(files(blobs)) == before + 1
        await store.delete(VERSIONED, key, version=info.version)
        assert len(files(blobs)) == before
        assert [found.deleted for found in await collect(store.versions(VERSIONED, key))] == [True]
        assert files(folder / "incoming") == []

    async def test_what_the_index_forgot_is_listed_again(
        self, store: ObjectStore, key: str, folder: Path, postgres: DatabaseSettings
    ) -> None:
        """As after PostgreSQL was put back to an earlier time."""
        assert isinstance(store, FolderObjectStore)
        for name in ("a", "b", "c"):
            await store.put(VERSIONED, f"{key}/{name}", f"{key}|{name}".encode())
        await store.put(VERSIONED, f"{key}/young", b"a put that is under way")
        for path in files(folder):
            if path.read_bytes() != b"a put that is under way":
                os.utime(path, (time.time() - 300,) * 2)
        database = Database(postgres, role="system")
        async with database.writer() as connection:
            await connection.execute(
                text("delete from object_version where bucket = :b and key <> :k and starts_with(key, :p)"),
                {"b": VERSIONED, "k": f"{key}/a", "p": f"{key}/"},
            )
        await database.close()

        def key_of(content: bytes) -> str | None:
            said, _, name = content.decode(errors="replace").rpartition("|")
            return f"{key}/{name}" if said == key and name != "c" else None

        assert await store.recover(VERSIONED, key_of) == 1
        assert [item.key for item in await collect(store.list(VERSIONED, f"{key}/"))] == [
            f"{key}/a",
            f"{key}/b",
        ]
        assert await store.get(VERSIONED, f"{key}/b") == f"{key}|b".encode()
        assert await store.recover(VERSIONED, key_of) == 0
