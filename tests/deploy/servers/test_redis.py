"""Redis by the recipe: acknowledged keys outlive SIGKILL, the password is needed and not readable by others."""

import secrets
import stat
from pathlib import Path

import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.provision import Programs
from deploy.servers.redis import redis
from deploy.servers.resp import pings
from tests.deploy.servers.conftest import Run
from tests.servers import free_port, kill, stop


def test_sigkill_loses_no_key(stack_programs: Programs, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / 'with "quotes" and \\ spaces'
    password = secrets.token_hex(8) + ' "\\'
    process = run(redis(folder, port := free_port(), password, server=stack_programs.redis_server))
    with client.Redis(port=port, password=password) as connection:
        for number in range(1000):
            connection.set(f"key-{number}", number)
    kill(process)
    assert not pings(port, password)

    again = redis(folder, port := free_port(), password, server=stack_programs.redis_server)
    process = run(again)
    with client.Redis(port=port, password=password) as connection:
        assert connection.dbsize() == 1000
        assert connection.get("key-999") == b"999"
        settings = connection.config_get("maxmemory", "maxmemory-policy", "appendonly")
        assert settings == {
            "maxmemory": str(4 << 30),
            "maxmemory-policy": "volatile-lru",
            "appendonly": "yes",
        }
    stop(again, process)
    assert process.returncode == 0, "stopped by itself, not by the final SIGKILL"


def test_two_installations_with_a_password_each(stack_programs: Programs, run: Run, tmp_path: Path) -> None:
    ports, passwords = (free_port(), free_port()), (secrets.token_hex(8), secrets.token_hex(8))
    for name, port, password in zip(("one", "two"), ports, passwords, strict=True):
        run(redis(tmp_path / name, port, password, server=stack_programs.redis_server))
        mode = (tmp_path / name / "redis" / "redis.conf").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert pings(ports[0], passwords[0])
    assert not pings(ports[0], passwords[1])
    with (
        client.Redis(port=ports[1], retry=Retry(NoBackoff(), 0)) as connection,
        pytest.raises(client.AuthenticationError),
    ):
        connection.ping()
