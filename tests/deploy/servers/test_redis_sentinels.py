"""A Redis master, its replicas and the sentinels by the recipe: who leads, through crashes and restarts."""

import asyncio
import os
import secrets
import signal
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as client
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from core.cache import open_cache
from core.settings import CacheSettings
from deploy.component import Component
from deploy.provision import Programs
from deploy.servers.redis.group import NAME, SENTINELS, SERVERS, Group
from deploy.servers.resp import ask
from deploy.supervisor.run_folder import RunFolder
from deploy.supervisor.unit import State
from tests.deploy.supervisor.toy import supervisor_of
from tests.servers import free_port, kill, start, stop, wait_for

pytestmark = pytest.mark.stack

TRIES_SECONDS = 60


class Running:
    """The six processes of a group, each startable by itself."""

    def __init__(self, group: Group, logs: Path) -> None:
        self.group, self._logs = group, logs
        self.components = {component.name: component for component in group.components()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """All at once: a sentinel is ready when it has found the others."""

        def begin(name: str) -> None:
            self.processes[name] = start(self.components[name], self._logs / f"{name}.log")

        with ThreadPoolExecutor(len(names)) as pool:
            for done in [pool.submit(begin, name) for name in names]:
                done.result()

    def stop(self, *names: str) -> list[int | None]:
        for name in names:
            stop(self.components[name], self.processes[name])
        return [self.processes[name].returncode for name in names]

    def kill(self, name: str) -> None:
        kill(self.processes[name])

    def kill_all(self) -> None:
        for process in self.processes.values():
            kill(process)


def group_in(folder: Path, program: Path) -> Group:
    ports = {name: free_port() for name in (*SERVERS, *SENTINELS)}
    return Group(folder, ports, secrets.token_hex(16), program)


def settings(group: Group) -> CacheSettings:
    hosts = ",".join(f"127.0.0.1:{group.ports[name]}" for name in SENTINELS)
    return CacheSettings(cache_url=f"redis+sentinel://{hosts}/{NAME}", cache_password=group.password)


def role(group: Group, name: str) -> str:
    """`master`, or `slave of <port>` with whether it follows; empty where it does not answer."""
    answer = ask(group.ports[name], group.password, "ROLE")
    if not isinstance(answer, list):
        return ""
    return "master" if answer[0] == "master" else f"slave of {answer[2]} {answer[3]}"


def refuses_writes(group: Group, name: str) -> bool:
    answer = ask(group.ports[name], group.password, "SET", f"direct:{name}", "x")
    return answer != "OK"


async def write(cache: Redis, key: str, *, copies: int = 0) -> None:
    """Until it is taken, and so many replicas have it."""
    async with asyncio.timeout(TRIES_SECONDS):
        while True:
            try:
                await cache.set(key, key.encode(), ex=600)
                if not copies or await cache.wait(copies, 500) >= copies:
                    return
            except RedisError:
                await asyncio.sleep(0.05)


@pytest.fixture
def running(stack_programs: Programs, tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "data with spaces"
    group = group_in(folder, stack_programs.redis_server)
    with ExitStack() as stack:
        found = Running(group, tmp_path)
        stack.callback(found.kill_all)
        found.start(*SERVERS)
        found.start(*SENTINELS)
        yield found


async def test_a_replica_takes_over_and_the_old_master_follows_it(running: Running) -> None:
    group = running.group
    first = group.ports["redis"]
    assert [role(group, name) for name in SERVERS] == ["master", *[f"slave of {first} connected"] * 2]
    cache = open_cache(settings(group))
    try:
        await write(cache, "before", copies=2)
        running.kill("redis")
        await write(cache, "during")
        assert await cache.mget("before", "during") == [b"before", b"during"]
        new = group.master()
        assert new in {group.ports[name] for name in SERVERS[1:]}

        running.start("redis")
        assert role(group, "redis") == f"slave of {new} connected", "from its very start"
        assert [role(group, name) for name in SERVERS].count("master") == 1
        await write(cache, "after", copies=2)
    finally:
        await cache.aclose()
    with client.Redis(port=first, password=group.password) as connection:
        assert connection.mget("before", "during", "after") == [b"before", b"during", b"after"]

    # After a night everybody knows who led, without anybody to ask.
    assert running.stop(*SENTINELS, *SERVERS) == [0] * 6
    running.start(*SERVERS)
    assert role(group, "redis") == f"slave of {new} connected"
    running.start(*SENTINELS)
    again = open_cache(settings(group))
    try:
        assert await again.mget("before", "during", "after") == [b"before", b"during", b"after"]
        await write(again, "next day")
    finally:
        await again.aclose()


async def test_a_master_that_is_back_too_late_takes_no_writes(running: Running) -> None:
    """It hung, another leads, and it believes to be the master until a sentinel tells it."""
    group = running.group
    hung = running.processes["redis"]
    os.killpg(hung.pid, signal.SIGSTOP)
    try:
        await asyncio.to_thread(wait_for, lambda: group.master() != group.ports["redis"])
        follower = next(name for name in SERVERS[1:] if group.ports[name] != group.master())
        await asyncio.to_thread(
            wait_for, lambda: role(group, follower) == f"slave of {group.master()} connected"
        )
    finally:
        os.killpg(hung.pid, signal.SIGCONT)
    await asyncio.to_thread(
        wait_for, lambda: role(group, "redis") == "master" or refuses_writes(group, "redis")
    )
    assert refuses_writes(group, "redis")
    await asyncio.to_thread(wait_for, lambda: role(group, "redis") == f"slave of {group.master()} connected")
    assert refuses_writes(group, "redis")


async def test_a_master_without_followers_is_left(running: Running) -> None:
    """Clients keep no connection to it: the next one goes where the sentinels say."""
    cache = open_cache(settings(running.group))
    try:
        await write(cache, "before")
        for name in SERVERS[1:]:
            running.kill(name)
        await asyncio.to_thread(wait_for, lambda: refuses_writes(running.group, "redis"))
        with pytest.raises(client.ConnectionError, match="no replica follows"):
            await cache.set("alone", b"x")
        assert await cache.get("before") == b"before"
        running.start(SERVERS[1])
        await write(cache, "after")
    finally:
        await cache.aclose()


def test_nobody_gets_in_without_the_password(running: Running) -> None:
    group = running.group
    for name in (*SERVERS, *SENTINELS):
        assert stat.S_IMODE((group.data / name).stat().st_mode) == 0o700
        with (
            client.Redis(port=group.ports[name], retry=Retry(NoBackoff(), 0)) as connection,
            pytest.raises(client.AuthenticationError),
        ):
            connection.ping()


def test_other_ports_or_a_lost_file_make_a_sentinel_anew(stack_programs: Programs, tmp_path: Path) -> None:
    group = group_in(tmp_path, stack_programs.redis_server)
    sentinels = [part for part in group.components() if part.name in SENTINELS]

    def written(name: str) -> str:
        return (tmp_path / name / "sentinel.conf").read_text()

    def monitors(port: int) -> str:
        return f"sentinel monitor {NAME} 127.0.0.1 {port} 2\n"

    for part in sentinels:
        part.prepare()
        assert monitors(group.ports["redis"]) in written(part.name)
    assert group.master() == group.ports["redis"]

    # The newest epoch counts, not the majority: it was written before the others heard of it.
    file, leader = tmp_path / "sentinel-2" / "sentinel.conf", group.ports["redis-replica-2"]
    changed = file.read_text().replace(monitors(group.ports["redis"]), monitors(leader))
    file.write_text(f"{changed}sentinel config-epoch {NAME} 7\n")
    assert group.master() == leader
    sentinels[1].prepare()
    assert f"config-epoch {NAME} 7" in written("sentinel-2"), "what it knows is kept"
    (tmp_path / "sentinel-1" / "sentinel.conf").unlink()
    sentinels[0].prepare()
    assert monitors(leader) in written("sentinel-1")

    moved = Group(tmp_path, {name: free_port() for name in group.ports}, group.password, group.program)
    assert moved.master() == moved.ports["redis"]
    for part in moved.components():
        part.prepare()
    assert monitors(moved.ports["redis"]) in written("sentinel-2")


async def test_under_the_supervisor_a_killed_master_leaves_one(
    stack_programs: Programs, tmp_path: Path
) -> None:
    group = group_in(tmp_path, stack_programs.redis_server)
    service = Component(name="service", argv=("sleep", "600"), ready=lambda: True, needs=SENTINELS)
    run = RunFolder(tmp_path)
    run.lock()
    supervisor = supervisor_of(tmp_path, *group.components(), service)
    supervisor.start()
    cache = open_cache(settings(group))
    try:
        await asyncio.to_thread(wait_for, lambda: supervisor.ready, seconds=60)
        await write(cache, "before", copies=2)
        (unit,) = [unit for unit in supervisor.units if unit.name == "redis"]
        assert unit.identity
        os.kill(unit.identity.pid, signal.SIGKILL)
        await write(cache, "after")
        await asyncio.to_thread(wait_for, lambda: unit.starts == 2 and supervisor.ready)
        assert [role(group, name) for name in SERVERS].count("master") == 1
        await write(cache, "at last", copies=2)
        assert await cache.mget("before", "after") == [b"before", b"after"]
        assert sum(not refuses_writes(group, name) for name in SERVERS) == 1
    finally:
        await cache.aclose()
        supervisor.ask_to_stop()
        await asyncio.to_thread(supervisor.stop)
        run.unlock()
    assert all(unit.state is State.STOPPED for unit in supervisor.units)
