"""What goes through is what came, except for what belongs to one hop or could lie."""

import asyncio
import gzip
import hashlib
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from yarl import URL

from services.common.principal import HEADER, sign, system, verify
from tests.services.gateway.conftest import Running, bearing, new_key
from tests.services.gateway.upstream import Request, Upstream

PATH = "/api/v1/usage"


async def test_a_request_arrives_as_it_was_sent(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    bodies = []

    async def handler(request: Request) -> None:
        bodies.append(await request.body())
        await request.answer(
            b"made", "content-type: text/x-odd", "x-twice: 1", "x-twice: 2", status="201 Created"
        )

    upstream.handler = handler
    target = URL(f"{gateway.address}{PATH}/events/%C3%A9%20x;v=1?b=%2F&a=1&a=2", encoded=True)
    headers = {**caller, "x-own": "Grüße", "accept-encoding": "br"}
    async with http.post(target, data=b'{"not": parsed', headers=headers) as answer:
        assert (answer.status, await answer.read()) == (201, b"made")
        assert answer.headers.getall("x-twice") == ["1", "2"]
        assert answer.headers["content-type"] == "text/x-odd"
        assert "transfer-encoding" not in answer.headers
    (request,) = upstream.requests
    assert request.method == "POST"
    assert request.target == f"{PATH}/events/%C3%A9%20x;v=1?b=%2F&a=1&a=2"
    assert bodies == [b'{"not": parsed']
    assert request.values("x-own")[0].encode("latin-1").decode() == "Grüße"
    assert request.values("accept-encoding") == ["br"]
    assert request.values("content-length") == ["14"]


async def test_what_belongs_to_one_hop_or_could_lie_stays_behind(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession
) -> None:
    async def handler(request: Request) -> None:
        await request.answer(
            b"", "connection: close, x-hop", "x-hop: 1", "keep-alive: timeout=9", "server: secret/1",
            "x-headrace-principal: leaked", "x-kept: 1",
        )  # fmt: skip

    upstream.handler = handler
    key = new_key(tenant="mine")
    forged = sign(system("attacker"), b"another key")
    headers = {
        **bearing(key), HEADER: forged, "connection": "x-drop, keep-alive", "x-drop": "1", "te": "trailers",
        "x-forwarded-for": "1.2.3.4", "forwarded": "for=1.2.3.4", "upgrade": "h2c",
    }  # fmt: skip
    async with http.get(gateway.address + PATH, headers=headers) as answer:
        assert answer.headers["x-kept"] == "1"
        for name in ("x-hop", "keep-alive", "server", HEADER):
            assert name not in answer.headers
    (request,) = upstream.requests
    for name in ("x-drop", "te", "forwarded", "upgrade", "authorization"):
        assert request.values(name) == []
    assert request.values("x-forwarded-for") == ["127.0.0.1"]
    (principal,) = request.values(HEADER)
    assert verify(principal, gateway.internal_key).tenant_id == "org_mine"


async def test_each_answer_names_request_and_trace(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {**caller, "x-request-id": "mine.1", "traceparent": trace}
    async with http.get(gateway.address + PATH, headers=sent) as answer:
        assert answer.headers["x-request-id"] == "mine.1"
        assert re.fullmatch(
            r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01", answer.headers["traceparent"]
        )
        assert answer.headers["traceparent"] != trace
        assert re.fullmatch(r"gateway;dur=\d+\.\d", answer.headers["server-timing"])
    assert upstream.requests[0].values("x-request-id") == ["mine.1"]
    assert upstream.requests[0].values("traceparent") == [answer.headers["traceparent"]]
    bad = {"x-request-id": "no\tgood", "traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}
    async with http.get(gateway.address + "/nowhere", headers=bad) as answer:
        assert answer.status == 404
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
        assert "0" * 32 not in answer.headers["traceparent"]


async def test_3_a_stream_passes_piece_by_piece(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    """Check 3 without its clock: the service holds the second event back until the first has reached the caller."""
    seen = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await request.send(b"9\r\ndata: 1\n\n\r\n")
        await seen.wait()
        await request.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    upstream.handler = handler
    async with http.get(gateway.address + PATH, headers=caller) as answer:
        assert await answer.content.readany() == b"data: 1\n\n"
        seen.set()
        assert await answer.content.read() == b"data: 2\n\n"


async def test_a_body_passes_piece_by_piece(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    """The caller holds the second piece back until the service has the first."""
    has_first = asyncio.Event()

    async def handler(request: Request) -> None:
        size = int(await request.reader.readline(), 16)
        assert await request.reader.readexactly(size) == b"first"
        has_first.set()
        await request.reader.readline()
        await request.answer(await request.body())

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await has_first.wait()
        yield b"second"

    upstream.handler = handler
    async with http.post(gateway.address + PATH, data=pieces(), headers=caller) as answer:
        assert await answer.read() == b"second"
    assert upstream.requests[0].values("transfer-encoding") == ["chunked"]


@pytest.mark.parametrize("announced", [True, False])
async def test_many_megabytes_come_back_unchanged(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str], announced: bool
) -> None:
    piece = bytes(range(256)) * 1024
    count = 64

    async def handler(request: Request) -> None:
        length = f"content-length: {count * len(piece)}" if announced else "transfer-encoding: chunked"
        await request.send(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
        for _ in range(count):
            await request.send(piece if announced else b"%x\r\n%b\r\n" % (len(piece), piece))
        if not announced:
            await request.send(b"0\r\n\r\n")

    upstream.handler = handler
    digest = hashlib.sha256()
    async with http.get(gateway.address + PATH, headers=caller) as answer:
        async for data in answer.content.iter_any():
            digest.update(data)
    assert digest.digest() == hashlib.sha256(piece * count).digest()


async def test_compressed_and_redirecting_answers_are_the_callers_business(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    packed = gzip.compress(b"text")
    upstream.handler = lambda request: request.answer(
        packed,
        "content-encoding: gzip",
        "location: http://127.0.0.1:1/",
        "set-cookie: a=1",
        status="307 Temporary",
    )
    async with http.get(gateway.address + PATH, headers=caller, allow_redirects=False) as answer:
        assert (answer.status, await answer.read()) == (307, packed)
    async with http.get(gateway.address + PATH, headers=caller, allow_redirects=False):
        pass
    assert upstream.requests[1].values("cookie") == []


async def test_head_is_a_get_without_its_body(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    upstream.handler = lambda request: request.answer(b"x" * 1000, "x-kept: 1")
    async with http.head(gateway.address + PATH, headers=caller) as answer:
        assert answer.status == 200
        assert (answer.headers["content-length"], answer.headers["x-kept"]) == ("1000", "1")
        assert await answer.read() == b""
    assert upstream.requests[0].method == "GET"


async def test_options_and_methods_come_from_the_table(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    async with http.options(gateway.address + "/api/v1/prices") as answer:
        assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    for method in ("POST", "TRACE", "PROPFIND"):
        async with http.request(method, gateway.address + "/api/v1/prices", headers=caller) as answer:
            assert answer.status == 405
            assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
            assert (await answer.json(content_type="application/problem+json"))[
                "code"
            ] == "method_not_allowed"
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/internal/introspect", 404, "not_found"),
        ("/api/v1/usagex", 404, "not_found"),
        ("/api/v1", 404, "not_found"),
        ("//api/v1/usage", 404, "not_found"),
        ("/api/v1/%75sage", 404, "not_found"),
        ("/api/v1/auth/../usage", 400, "ambiguous_path"),
        ("/api/v1/auth/..%2fusage", 400, "ambiguous_path"),
        ("/api/v1/auth/%2e%2E/usage", 400, "ambiguous_path"),
        ("/api/v1/usage/..", 400, "ambiguous_path"),
        ("/api/v1/usage/%00", 400, "ambiguous_path"),
        ("/api/v1/usage/a%5Cb", 400, "ambiguous_path"),
        ("/api/v1/usage/a%0A", 400, "ambiguous_path"),
    ],
)
async def test_only_what_the_table_names_can_be_reached(
    gateway: Running,
    upstream: Upstream,
    http: aiohttp.ClientSession,
    caller: dict[str, str],
    path: str,
    status: int,
    code: str,
) -> None:
    url = URL(gateway.address + path, encoded=True)
    async with http.post(url, headers=caller) as answer:
        assert answer.status == status
        assert (await answer.json(content_type="application/problem+json"))["code"] == code
    assert upstream.requests == []
