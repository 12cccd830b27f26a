"""Requests that two servers could read differently, or that never end, are refused by the first."""

import asyncio
from contextlib import suppress

import pytest

from tests.services.gateway.conftest import Running, connection
from tests.services.gateway.upstream import Upstream

HEAD = "POST /api/v1/usage HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n"


async def _exchange(gateway: Running, data: bytes) -> bytes:
    """All that comes back until the gateway closes; a reset after the answer is an end, too."""
    received = b""
    async with connection(gateway.port) as (reader, writer), asyncio.timeout(20):
        with suppress(ConnectionError):
            writer.write(data)
            while piece := await reader.read(65536):
                received += piece
    return received


@pytest.mark.parametrize(
    "rest",
    [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "content-length: 5, 6\r\n\r\nhello",
        "content-length: +5\r\n\r\nhello",
        "content-length: 0x5\r\n\r\nhello",
        "content-length : 5\r\n\r\nhello",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5;\rx\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "x: a\r\n b: c\r\ncontent-length: 0\r\n\r\n",
        "x: a\nb: c\r\ncontent-length: 0\r\n\r\n",
        "x\x00y: a\r\ncontent-length: 0\r\n\r\n",
        "no colon here\r\n\r\n",
    ],
)
async def test_ambiguous_framing_is_refused(
    gateway: Running, upstream: Upstream, caller: dict[str, str], rest: str
) -> None:
    """With a second request behind, which must not come out as a request of its own."""
    hidden = "GET /api/v1/usage/hidden HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\r\n"
    data = (HEAD + rest + hidden).replace("{key}", caller["authorization"])
    received = await _exchange(gateway, data.encode("latin-1"))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in received
    assert received.count(b"HTTP/1.1 ") == 1
    assert [request.target for request in upstream.requests if "hidden" in request.target] == []


async def test_a_head_that_never_ends_is_cut(gateway: Running) -> None:
    endless = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"v" * 1000) for n in range(2000))
    received = await _exchange(gateway, endless)
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")


async def test_a_second_authorization_is_refused(
    gateway: Running, upstream: Upstream, caller: dict[str, str]
) -> None:
    line = f"authorization: {caller['authorization']}\r\n"
    head = f"GET /api/v1/usage HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{line}{line}\r\n"
    assert (await _exchange(gateway, head.encode())).startswith(b"HTTP/1.1 401 ")
    assert upstream.requests == []
