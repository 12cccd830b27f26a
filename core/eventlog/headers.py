"""Headers of a record as one column (MessagePack), and the size that counts against a topic's limit."""

import msgspec

from core.eventlog.api import NewRecord

Headers = tuple[tuple[str, bytes], ...]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Headers)


def encode(headers: Headers) -> bytes | None:
    """The column's value; None without headers, so that such records pay nothing."""
    return _encoder.encode(headers) if headers else None


def decode(column: bytes | None) -> Headers:
    """The headers of a column's value, in their order."""
    return _decoder.decode(column) if column is not None else ()


def record_size(record: NewRecord) -> int:
    """Bytes that count against a topic's `max_record_bytes`: key, value and headers."""
    size = len(record.key) + len(record.value)
    for name, value in record.headers:
        size += len(name.encode()) + len(value)
    return size
