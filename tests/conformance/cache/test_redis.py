"""A real Redis."""

import pytest

from core.settings import CacheSettings
from tests.conformance.cache.suite import CacheSuite

pytestmark = pytest.mark.stack


@pytest.fixture
def cache_settings(redis_server: CacheSettings) -> CacheSettings:
    return redis_server


class TestRedis(CacheSuite):
    pass
