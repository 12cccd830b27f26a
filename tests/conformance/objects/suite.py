"""What every object store must do. An adapter's test module subclasses `ObjectStoreSuite`."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.ids import new_id
from core.objects import open_objects
from core.objects.api import ObjectInfo, ObjectNotFoundError, ObjectStore, PreconditionFailedError
from core.settings import DatabaseSettings, ObjectSettings
from tests.conftest import REPOSITORY

PLAIN, VERSIONED = "suite-plain", "suite-versioned"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def pieces(*values: bytes) -> AsyncIterator[bytes]:
    for value in values:
        yield value


async def failing() -> AsyncIterator[bytes]:
    yield b"half"
    raise ConnectionResetError("the sender went away")


async def collect(found: AsyncIterator[ObjectInfo]) -> list[ObjectInfo]:
    return [info async for info in found]


class ObjectStoreSuite:
    """Subclasses give the fixtures `objects_settings` and `index` (the database of a folder's index)."""

    @pytest.fixture
    async def store(
        self, objects_settings: ObjectSettings, index: DatabaseSettings
    ) -> AsyncIterator[ObjectStore]:
        async with open_objects(objects_settings, index) as opened:
            await opened.ensure_bucket(PLAIN, versioned=False)
            await opened.ensure_bucket(VERSIONED, versioned=True)
            yield opened

    @pytest.fixture
    def key(self) -> str:
        """A key of this test alone, with characters that need care on the way."""
        return f"{new_id('test')}/a b+c%20ü.txt"

    @pytest.mark.parametrize("bucket", [PLAIN, VERSIONED])
    @pytest.mark.parametrize("size", [0, 1, 2_500_000])
    async def test_bytes_round_trip_with_checksum(
        self, store: ObjectStore, key: str, bucket: str, size: int
    ) -> None:
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        info = await store.put(bucket, key, data)
        assert (info.bucket, info.key, info.size, info.sha256) == (bucket, key, size, sha256(data))
        assert bool(info.version) == (bucket == VERSIONED)
        assert await store.head(bucket, key) == info
        assert await store.get(bucket, key) == data
        assert b"".join([piece async for piece in store.stream(bucket, key)]) == data

    async def test_files_and_streams(self, store: ObjectStore, key: str, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"from a file")
        assert (await store.put(PLAIN, key, file)).sha256 == sha256(b"from a file")
        info = await store.put(PLAIN, key, pieces(b"from ", b"", b"a stream"))
        assert (info.size, info.sha256) == (13, sha256(b"from a stream"))
        assert await store.get(PLAIN, key) == b"from a stream"
        assert file.exists()

    async def test_a_broken_stream_leaves_nothing(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(ConnectionResetError):
            await store.put(PLAIN, key, failing())
        with pytest.raises(ObjectNotFoundError):
            await store.head(PLAIN, key)

    async def test_put_replaces_in_a_plain_bucket(self, store: ObjectStore, key: str) -> None:
        await store.put(PLAIN, key, b"old")
        await store.put(PLAIN, key, b"new")
        assert await store.get(PLAIN, key) == b"new"
        assert [info.sha256 for info in await collect(store.versions(PLAIN, key))] == [sha256(b"new")]
        await store.delete(PLAIN, key)
        await store.delete(PLAIN, key)
        with pytest.raises(ObjectNotFoundError):
            await store.get(PLAIN, key)
        assert await collect(store.versions(PLAIN, key)) == []

    @pytest.mark.parametrize("bucket", [PLAIN, VERSIONED])
    @pytest.mark.parametrize("size", [3, 17 << 20])
    async def test_second_conditional_put_is_refused(
        self, store: ObjectStore, key: str, bucket: str, size: int
    ) -> None:
        first = await store.put(bucket, key, b"1" * size, if_absent=True)
        with pytest.raises(PreconditionFailedError, match="exists already"):
            await store.put(bucket, key, b"2" * size, if_absent=True)
        assert await store.head(bucket, key) == first
        assert len(await collect(store.versions(bucket, key))) == 1
        await store.delete(bucket, key)
        again = await store.put(bucket, key, b"3" * size, if_absent=True)
        assert await store.head(bucket, key) == again

    async def test_one_of_many_conditional_puts_wins(self, store: ObjectStore, key: str) -> None:
        for race in range(5):

            async def attempt(number: int, name: str = f"{key}{race}") -> bytes | None:
                data = str(number).encode()
                try:
                    await store.put(VERSIONED, name, data, if_absent=True)
                except PreconditionFailedError:
                    return None
                return data

            winners = [data for data in await asyncio.gather(*map(attempt, range(8))) if data is not None]
            assert winners == [await store.get(VERSIONED, f"{key}{race}")]
            assert len(await collect(store.versions(VERSIONED, f"{key}{race}"))) == 1

    async def test_one_of_many_processes_wins(
        self, objects_settings: ObjectSettings, index: DatabaseSettings, store: ObjectStore, key: str
    ) -> None:
        keys = [f"{key}.{number:02}" for number in range(20)]
        racers = [worker(objects_settings, index, "race", VERSIONED, *keys) for _ in range(3)]
        won = await asyncio.to_thread(finish, *racers)
        for name in keys:
            owners = [process for process, names in enumerate(won) if name in names]
            assert len(owners) == 1
            assert (await store.get(VERSIONED, name)).decode() == str(racers[owners[0]].pid)
            assert len(await collect(store.versions(VERSIONED, name))) == 1

    async def test_concurrent_puts_leave_one_latest(self, store: ObjectStore, key: str) -> None:
        await asyncio.gather(*(store.put(VERSIONED, key, str(number).encode()) for number in range(8)))
        versions = await collect(store.versions(VERSIONED, key))
        assert [info.latest for info in versions] == [True] + [False] * 7
        assert len({info.version for info in versions}) == 8
        assert sha256(await store.get(VERSIONED, key)) == versions[0].sha256

    async def test_list_is_sorted_and_complete(self, store: ObjectStore, key: str) -> None:
        folder = key.split("/", maxsplit=1)[0]
        names = [f"{folder}/{name}" for name in ("B", "a", "b-", "b/c", "b0", "ü", "😀", "%", "_x", "y+ z")]
        for name in names:
            await store.put(PLAIN, name, name.encode())
        await store.put(PLAIN, f"{folder}0", b"beside")
        found = await collect(store.list(PLAIN, f"{folder}/"))
        assert [info.key for info in found] == sorted(names, key=str.encode)
        assert [info.sha256 for info in found] == [sha256(info.key.encode()) for info in found]
        assert [info.key for info in await collect(store.list(PLAIN, f"{folder}/_"))] == [f"{folder}/_x"]
        assert [info.key for info in await collect(store.list(PLAIN, f"{folder}/%"))] == [f"{folder}/%"]
        assert await collect(store.list(PLAIN, f"{folder}/nothing")) == []

    async def test_list_pages(self, store: ObjectStore, key: str) -> None:
        names = [f"{key}/{number:04}" for number in range(1003)]
        for start in range(0, len(names), 17):
            await asyncio.gather(*(store.put(VERSIONED, name, b"") for name in names[start : start + 17]))
        assert [info.key for info in await collect(store.list(VERSIONED, key))] == names
        assert [info.key for info in await collect(store.versions(VERSIONED, key))] == names

    async def test_versions_and_delete_markers(self, store: ObjectStore, key: str) -> None:
        puts = [await store.put(VERSIONED, key, data) for data in (b"1", b"2", b"3")]
        await store.delete(VERSIONED, key)
        for missing in (store.get, store.head):
            with pytest.raises(ObjectNotFoundError):
                await missing(VERSIONED, key)
        assert await collect(store.list(VERSIONED, key)) == []
        marker, *rest = await collect(store.versions(VERSIONED, key))
        assert (marker.deleted, marker.latest, marker.sha256) == (True, True, "")
        assert [(info.version, info.sha256, info.latest) for info in rest] == [
            (info.version, info.sha256, False) for info in reversed(puts)
        ]
        with pytest.raises(ObjectNotFoundError):
            await store.get(VERSIONED, key, version=marker.version)
        assert await store.get(VERSIONED, key, version=puts[0].version) == b"1"
        assert (await store.head(VERSIONED, key, version=puts[1].version)).sha256 == sha256(b"2")

        await store.delete(VERSIONED, key, version=marker.version)
        assert await store.get(VERSIONED, key) == b"3"
        await store.delete(VERSIONED, key, version=puts[2].version)
        assert await store.get(VERSIONED, key) == b"2"
        await store.delete(VERSIONED, key, version=puts[2].version)
        with pytest.raises(ObjectNotFoundError):
            await store.get(VERSIONED, key, version=puts[2].version)
        await store.delete(VERSIONED, key, version=puts[0].version)
        assert [info.version for info in await collect(store.versions(VERSIONED, key))] == [puts[1].version]

    async def test_unknown_names(self, store: ObjectStore, key: str) -> None:
        for lost in (store.get, store.head):
            with pytest.raises(ObjectNotFoundError, match="does not exist"):
                await lost(PLAIN, key)
            with pytest.raises(ObjectNotFoundError, match="does not exist"):
                await lost("suite-nowhere", key)
        with pytest.raises(ObjectNotFoundError, match="does not exist"):
            await store.put("suite-nowhere", key, b"")
        with pytest.raises(ObjectNotFoundError, match="does not exist"):
            await store.delete("suite-nowhere", key)
        for walk in (store.list, store.versions):
            with pytest.raises(ObjectNotFoundError, match="does not exist"):
                await collect(walk("suite-nowhere"))

    @pytest.mark.parametrize(
        "bad", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\x00b", "a\nb", "a\\b", "ü" * 513]
    )
    async def test_keys_that_no_store_takes(self, store: ObjectStore, bad: str) -> None:
        with pytest.raises(ValueError, match="object key"):
            await store.put(PLAIN, bad, b"")

    async def test_longest_key(self, store: ObjectStore, key: str) -> None:
        folder = key.split("/", maxsplit=1)[0]
        long = folder + "/" + "/".join(["k" * 200] * 4) + "/" + "z" * (1024 - len(folder) - 2 - 4 * 200 - 3)
        assert len(long) == 1024
        await store.put(PLAIN, long, b"long")
        assert [info.key for info in await collect(store.list(PLAIN, folder))] == [long]

    async def test_a_gigabyte_streams_in_bounded_memory(
        self, objects_settings: ObjectSettings, index: DatabaseSettings, store: ObjectStore, key: str
    ) -> None:
        process = worker(objects_settings, index, "gigabyte", PLAIN, key)
        (report,) = await asyncio.to_thread(finish, process)
        info = await store.head(PLAIN, key)
        await store.delete(PLAIN, key)
        assert (info.size, info.sha256) == (1 << 30, report["sha256"])
        assert (report["pieces"], report["rest"]) == (1024, 0)
        assert report["grown_bytes"] < 150_000_000


def worker(objects: ObjectSettings, index: DatabaseSettings, *arguments: str) -> subprocess.Popen[bytes]:
    """A process of its own that works on the store; see `tests/conformance/objects/worker.py`."""
    environment = {}
    for settings in (objects, index):
        for name in type(settings).model_fields:
            value = getattr(settings, name)
            if value is not None:
                plain = value.get_secret_value() if hasattr(value, "get_secret_value") else value
                environment[f"HEADRACE_{name.upper()}"] = str(plain)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.conformance.objects.worker", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def finish(*processes: subprocess.Popen[bytes]) -> list[Any]:
    """Let the workers go once all are ready; returns what each has to tell (blocking)."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    told = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        told.append(json.loads(output))
    return told
