"""A service that is down, slow, cut off or too talkative, and callers that leave, stall or send too much."""

import asyncio
import hashlib
import io
import json
import socket
from contextlib import ExitStack

import aiohttp
import pytest

from services.gateway.routes import MIB
from tests.servers import wait_for
from tests.services.gateway.conftest import Running, connection
from tests.services.gateway.upstream import Request, Upstream

PATH = "/api/v1/usage"
MAX_BODY = 4 * MIB
"""Of that row of the table."""


async def _problem(answer: aiohttp.ClientResponse) -> str:
    document = await answer.json(content_type="application/problem+json")
    assert document["status"] == answer.status
    assert document["instance"] == PATH
    return str(document["code"])


async def test_a_service_that_is_down_is_503_and_comes_back(
    gateway: Running, behind: dict[str, str], http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    async with http.post(gateway.address + PATH, data=b"{}", headers=caller) as answer:
        assert (answer.status, await _problem(answer)) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
    async with Upstream(gateway.billing_port), http.get(gateway.address + PATH, headers=caller) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"SSH-2.0-OpenSSH_9\r\n\r\n"])
async def test_a_service_that_breaks_off_before_its_answer_is_502(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str], said: bytes
) -> None:
    async def handler(request: Request) -> None:
        await request.body()
        await request.send(said)

    upstream.handler = handler
    async with http.post(gateway.address + PATH, data=b"{}", headers=caller) as answer:
        assert (answer.status, await _problem(answer)) == (502, "upstream_failed")
    assert len(upstream.requests) == 1, "a POST must not be repeated"


async def test_a_silent_service_is_504_and_is_told(
    impatient: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    told = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.body()
        await request.gone()
        told.set()

    upstream.handler = handler
    async with http.post(impatient.address + PATH, data=b"{}", headers=caller) as answer:
        assert (answer.status, await _problem(answer)) == (504, "upstream_timeout")
        assert answer.headers["retry-after"] == "5"
    await asyncio.wait_for(told.wait(), 10)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
@pytest.mark.parametrize("then", ["close", "silence"])
async def test_half_an_answer_never_looks_whole(
    impatient: Running,
    upstream: Upstream,
    http: aiohttp.ClientSession,
    caller: dict[str, str],
    start: bytes,
    then: str,
) -> None:
    async def handler(request: Request) -> None:
        await request.send(start)
        if then == "silence":
            await request.gone()

    upstream.handler = handler
    async with http.get(impatient.address + PATH, headers=caller) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


@pytest.mark.parametrize("sent", ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ""])
async def test_a_line_in_the_log_names_the_trace_of_its_answer(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str], sent: str
) -> None:
    upstream.handler = lambda request: request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    async with http.get(gateway.address + PATH, headers={**caller, "traceparent": sent}) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    _, trace, span, _ = answer.headers["traceparent"].split("-")
    assert trace in sent or not sent
    wait_for(lambda: answer.headers["x-request-id"] in gateway.log.read_text())
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    (line,) = [each for each in lines if each["data"].get("request") == answer.headers["x-request-id"]]
    assert (line["message"], line["traceId"], line["spanId"]) == ("the answer broke off", trace, span)


async def test_a_caller_that_leaves_cancels_the_work(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    begun, told = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        begun.set()
        async with asyncio.TaskGroup() as both:
            watch = both.create_task(request.gone())
            while not watch.done():
                await request.send(b"1\r\n.\r\n")
                await asyncio.sleep(0.1)
        told.set()

    upstream.handler = handler
    call = asyncio.create_task(_read(http, gateway, caller))
    await asyncio.wait_for(begun.wait(), 10)
    call.cancel()
    await asyncio.wait_for(told.wait(), 10)


async def _read(http: aiohttp.ClientSession, gateway: Running, caller: dict[str, str]) -> bytes:
    async with http.get(gateway.address + PATH, headers=caller) as answer:
        return await answer.read()


async def test_a_caller_that_leaves_before_the_answer_cancels_the_work(
    gateway: Running, upstream: Upstream, caller: dict[str, str]
) -> None:
    """Told by the closed connection, well before the service's time is up."""
    asked, told = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        asked.set()
        await request.gone()
        told.set()

    upstream.handler = handler
    async with connection(gateway.port) as (_, writer):
        writer.write(_get(caller))
        await asyncio.wait_for(asked.wait(), 10)
    await asyncio.wait_for(told.wait(), 10)
    async with (
        aiohttp.ClientSession() as http,
        http.get(gateway.address + "/metrics") as metrics,
    ):
        assert 'code="499",route="/api/v1/usage"' in await metrics.text()


def _get(caller: dict[str, str]) -> bytes:
    return f"GET {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {caller['authorization']}\r\n\r\n".encode()


async def test_a_slow_reader_slows_the_service_down(
    gateway: Running, upstream: Upstream, caller: dict[str, str]
) -> None:
    """Of 64 MB only what fits into the buffers on the way leaves the service while nobody reads."""
    piece, count, sent = b"x" * 65536, 1024, 0
    stalled = asyncio.Event()

    async def handler(request: Request) -> None:
        nonlocal sent
        await request.send(f"HTTP/1.1 200 OK\r\ncontent-length: {len(piece) * count}\r\n\r\n".encode())
        for _ in range(count):
            try:
                await asyncio.wait_for(request.send(piece), 0.7)
            except TimeoutError:
                stalled.set()
                await request.writer.drain()
            sent += len(piece)

    upstream.handler = handler
    async with connection(gateway.port) as (reader, writer):
        writer.write(_get(caller))
        await asyncio.wait_for(stalled.wait(), 20)
        assert sent < len(piece) * count / 2
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(piece) * count)
    assert hashlib.sha256(body).digest() == hashlib.sha256(piece * count).digest()


async def test_an_announced_body_above_the_cap_is_refused_unread(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    async with http.post(
        gateway.address + PATH, data=io.BytesIO(bytes(10_000_000)), headers=caller
    ) as answer:
        assert (answer.status, await _problem(answer)) == (413, "body_too_large")
    async with http.get(gateway.address + PATH, headers=caller) as answer:
        assert answer.status == 200, "the connection is still good"
    assert [request.method for request in upstream.requests] == ["GET"]


async def test_a_body_without_length_is_cut_at_the_cap(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    bodies: list[bytes] = []

    async def handler(request: Request) -> None:
        bodies.append(await request.body())
        await request.answer(b"whole")

    async def pieces(size: int):  # type: ignore[no-untyped-def]
        for _ in range(size // 65536):
            yield bytes(65536)

    upstream.handler = handler
    async with http.post(gateway.address + PATH, data=pieces(MAX_BODY * 4), headers=caller) as answer:
        assert (answer.status, await _problem(answer)) == (413, "body_too_large")
    assert bodies == [], "the service never saw an end of that body"
    async with http.post(gateway.address + PATH, data=pieces(MAX_BODY), headers=caller) as answer:
        assert await answer.read() == b"whole"
    assert bodies == [bytes(MAX_BODY)]


async def test_a_small_body_without_length_has_a_cap_too(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession
) -> None:
    """Whole in the first packet, so that nothing of it is passed on as it comes."""
    head = b"POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with connection(gateway.port) as (reader, writer):
        writer.write(head + b"4001\r\n" + bytes(0x4001) + b"\r\n0\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_stops_coming_is_408(
    impatient: Running, upstream: Upstream, caller: dict[str, str]
) -> None:
    upstream.handler = lambda request: request.gone()
    head = _get(caller).replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\ncontent-length: 100\r\n\r\n")
    async with connection(impatient.port) as (reader, writer):
        writer.write(head + b"half")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")


async def test_a_host_that_does_not_answer_is_not_waited_for(
    gateway: Running, http: aiohttp.ClientSession, caller: dict[str, str]
) -> None:
    """A full backlog stands for a host that is gone: connects to it run into their time-out."""

    async def status() -> tuple[int, str]:
        async with http.get(gateway.address + PATH, headers=caller) as answer:
            return answer.status, answer.headers["retry-after"]

    async def breaker() -> str:
        async with http.get(gateway.address + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next(line for line in lines if line.startswith('gateway_breaker_open{service="billing"}'))

    with socket.socket() as deaf, ExitStack() as fillers:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deaf.bind(("127.0.0.1", gateway.billing_port))
        deaf.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", gateway.billing_port))
        waited = await asyncio.gather(status(), status(), status())
        assert list(waited) == [(503, "1")] * 3
        assert await status() == (503, "2"), "refused unasked"
        assert (await breaker()).endswith(" 1.0")
    async with Upstream(gateway.billing_port), asyncio.timeout(10):
        answered = 503
        while answered == 503:
            await asyncio.sleep(0.2)
            async with http.get(gateway.address + PATH, headers=caller) as answer:
                answered = answer.status
    assert answered == 200
    assert (await breaker()).endswith(" 0.0")
