"""The embedded Valkey."""

import signal
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError

from core.cache import open_cache
from core.settings import CacheSettings
from deploy.servers.valkey import valkey as valkey_server
from tests.conformance.cache.suite import CacheSuite
from tests.servers import free_port, kill, start


@pytest.fixture
def cache_settings(valkey: CacheSettings) -> CacheSettings:
    return valkey


class TestValkey(CacheSuite):
    async def test_the_client_comes_back_after_sigkill(self, tmp_path: Path) -> None:
        password = "0123456789abcdef"
        server = valkey_server(tmp_path, free_port(), password)
        process = start(server, tmp_path / "log")
        cache = open_cache(CacheSettings(cache_url=f"redis://{server.address}/0", cache_password=password))
        try:
            await cache.set("key", b"value")
            await cache.config_set("appendfsync", "always")
            await cache.set("other", b"kept")
            kill(process)
            assert process.returncode == -signal.SIGKILL
            with pytest.raises(ConnectionError):
                await cache.get("key")
            process = start(server, tmp_path / "log")
            assert await cache.get("other") == b"kept"
        finally:
            await cache.aclose()
            kill(process)
