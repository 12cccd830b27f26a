"""A process that works on an object store for the suite: `race BUCKET KEY…` or `gigabyte BUCKET KEY`."""

import asyncio
import hashlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from core.objects import open_objects
from core.objects.api import ObjectStore, PreconditionFailedError
from core.settings import DatabaseSettings, ObjectSettings

PIECE = 1 << 20


async def race(store: ObjectStore, bucket: str, keys: list[str]) -> list[str]:
    """Try to be the first at every key; the keys won."""
    won = []
    for key in keys:
        try:
            await store.put(bucket, key, str(os.getpid()).encode(), if_absent=True)
        except PreconditionFailedError:
            continue
        won.append(key)
    return won


async def gigabyte(store: ObjectStore, bucket: str, key: str) -> dict[str, object]:
    """Write a gigabyte from a stream, read it back; its hash, and how much the peak memory has grown."""
    await store.put(bucket, f"{key}.warm", b"up")
    await store.get(bucket, f"{key}.warm")
    await store.delete(bucket, f"{key}.warm")
    before = peak_bytes()
    block = random.Random(1).randbytes(PIECE - 8)
    digest = hashlib.sha256()

    async def produce() -> AsyncIterator[bytes]:
        for number in range(1024):
            piece = number.to_bytes(8) + block
            digest.update(piece)
            yield piece

    await store.put(bucket, key, produce())
    received, rest = 0, b""
    async for part in store.stream(bucket, key):
        rest += part
        while len(rest) >= PIECE:
            if rest[:PIECE] != received.to_bytes(8) + block:
                raise AssertionError(f"piece {received} is not what was sent")
            received, rest = received + 1, rest[PIECE:]
    grown = peak_bytes() - before
    return {"sha256": digest.hexdigest(), "pieces": received, "rest": len(rest), "grown_bytes": grown}


def peak_bytes() -> int:
    """Peak resident memory of this program alone (`ru_maxrss` begins with that of who started it)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


async def main(task: str, bucket: str, *keys: str) -> None:
    async with open_objects(ObjectSettings(), DatabaseSettings()) as store:
        await store.ensure_bucket(bucket, versioned=False)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        result = await (race(store, bucket, [*keys]) if task == "race" else gigabyte(store, bucket, keys[0]))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
