"""A real Redis behind a sentinel: the client follows the master."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from core.cache import CONNECTIONS, open_cache
from core.settings import CacheSettings
from deploy.component import Component
from deploy.provision import Programs
from tests.servers import free_port, kill, start, wait_for

pytestmark = pytest.mark.stack

PASSWORD = "0123456789abcdef"


def ask(program: Path, port: int, *command: str) -> bytes:
    """What a process says to a command; nothing where it does not answer."""
    cli = str(program).replace("redis-server", "redis-cli")
    words = [cli, "-p", str(port), "-a", PASSWORD, "--no-auth-warning", *command]
    return subprocess.run(words, capture_output=True, check=False).stdout


def server(program: Path, folder: Path, port: int, *lines: str, mode: tuple[str, ...] = ()) -> Component:
    """A Redis process with the given lines in its configuration."""
    file = folder / f"{port}.conf"
    file.write_text("\n".join(("bind 127.0.0.1", f"port {port}", f'dir "{folder}"', *lines, "")))

    return Component(
        name=f"redis-{port}", argv=(str(program), str(file), *mode),
        ready=lambda: ask(program, port, "ping") == b"PONG\n",
    )  # fmt: skip


@pytest.fixture
def processes(stack_programs: Programs, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Master, replica and sentinel; gives the cache's URL and the master."""
    program = stack_programs.redis_server
    secret = (f"requirepass {PASSWORD}",)
    data = (*secret, f"masterauth {PASSWORD}", "appendonly no", 'save ""')
    first, second, watcher = free_port(), free_port(), free_port()
    with ExitStack() as stack:

        def launch(component: Component) -> subprocess.Popen[bytes]:
            process = start(component, tmp_path / f"{component.name}.log")
            stack.callback(kill, process)
            return process

        master = launch(server(program, tmp_path, first, *data))
        launch(
            server(
                program, tmp_path, second, *data, f"replicaof 127.0.0.1 {first}", "repl-diskless-sync-delay 0"
            )
        )
        # A sentinel asks a master for its replicas at once and then each ten seconds: one it does not know cannot lead.
        wait_for(lambda: b"slave0" in ask(program, first, "info", "replication"))
        launch(
            server(
                program, tmp_path, watcher, *secret, f"sentinel monitor main 127.0.0.1 {first} 1",
                f"sentinel auth-pass main {PASSWORD}", "sentinel down-after-milliseconds main 2000",
                "sentinel failover-timeout main 3000", mode=("--sentinel",),
            )
        )  # fmt: skip
        wait_for(lambda: str(second).encode() in ask(program, watcher, "sentinel", "replicas", "main"))
        yield f"redis+sentinel://127.0.0.1:{watcher}/main", master


async def test_the_client_follows_the_master(processes: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, master = processes
    cache = open_cache(CacheSettings(cache_url=url, cache_password=PASSWORD))
    try:
        # More at once than there are connections: here too they wait.
        await asyncio.gather(*(cache.set("key", b"before") for _ in range(2 * CONNECTIONS)))
        while not await cache.wait(1, 100):
            await cache.set("key", b"before")
        kill(master)
        while True:
            try:
                await cache.set("other", b"after")
                break
            except RedisError:
                await asyncio.sleep(0.1)
        assert await cache.mget("key", "other") == [b"before", b"after"]
    finally:
        await cache.aclose()
