"""Headers survive their column, and count against the limit."""

from hypothesis import given
from hypothesis import strategies as some

from core.eventlog.api import NewRecord
from core.eventlog.headers import decode, encode, record_size

HEADERS = some.lists(some.tuples(some.text(max_size=20), some.binary(max_size=50)), max_size=5).map(tuple)


@given(HEADERS)
def test_any_headers_come_back(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert decode(encode(headers)) == headers


def test_no_headers_take_no_room() -> None:
    assert encode(()) is None


def test_size_counts_bytes_of_key_value_and_headers() -> None:
    assert record_size(NewRecord("t", b"key", b"value", (("ключ", b"12"), ("a", b"")))) == 3 + 5 + 8 + 2 + 1
