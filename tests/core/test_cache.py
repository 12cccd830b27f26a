"""Addresses of the cache, and errors that say what to do."""

import pytest

from core.cache import explain, open_cache
from core.settings import CacheSettings


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("NOAUTH HELLO must be called with the client already authenticated, otherwise …", "got none"),
        ("NOAUTH Authentication required.", "got none"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "refused"),
        ("AUTH <password> called without any password configured for the default user.", "has no password"),
        ("LOADING the dataset", "LOADING the dataset"),
    ],
)
def test_explanations(answer: str, says: str) -> None:
    assert says in explain(answer)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/0", "redis+sentinel://127.0.0.1:1", "redis:///0", ""])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="HEADRACE_CACHE_URL"):
        open_cache(CacheSettings(cache_url=url, cache_password="0123456789abcdef"))
