"""The frame of a service, seen from outside its process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from deploy.component import Component
from deploy.components import is_ready
from services.common.http_protocol import MAX_HEAD_BYTES
from services.common.principal import HEADER, Principal, sign, system
from tests.real_data import REPOSITORY
from tests.servers import free_port, running, start
from tests.services.common.sample_process import KEY


def sample(port: int, **environment: str) -> Component:
    return Component(
        name="sample",
        argv=(sys.executable, "-W", "error", "-m", "tests.services.common.sample_process"),
        env={"PATH": os.environ["PATH"], "HEADRACE_PORT": str(port), "PYTHONUNBUFFERED": "1", **environment},
        cwd=REPOSITORY,
        address=f"http://127.0.0.1:{port}",
        ready=lambda: is_ready(port),
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(sample(free_port()), tmp_path_factory.mktemp("sample") / "log") as component:
        yield component.address


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/trouble/problem", 409, "taken"),
        ("GET", "/api/v1/trouble/missing", 404, "not_found"),
        ("GET", "/api/v1/trouble/database", 503, "unavailable"),
        ("GET", "/api/v1/trouble/deadlock", 503, "unavailable"),
        ("GET", "/api/v1/trouble/log", 503, "unavailable"),
        ("GET", "/api/v1/trouble/queue", 503, "unavailable"),
        ("GET", "/api/v1/trouble/other", 500, "internal_error"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/v1/things/", 404, "not_found"),
        ("DELETE", "/api/v1/things", 405, "method_not_allowed"),
        ("GET", "/api/v1/things?limit=0", 422, "invalid_request"),
        ("GET", "/api/v1/things?after=%00", 422, "invalid_request"),
        ("GET", "/api/v1/slow", 422, "invalid_request"),
        ("GET", "/api/v1/things?limt=1", 422, "unknown_parameter"),
        ("POST", "/api/v1/things/1?limit=1", 422, "unknown_parameter"),
        ("GET", "/api/v1/mine", 401, "unauthenticated"),
        ("GET", "/api/v1/inner", 404, "not_found"),
        ("POST", "/api/v1/things/1", 415, "unsupported_media_type"),
    ],
)
async def test_every_error_is_a_problem(
    http: aiohttp.ClientSession, address: str, method: str, path: str, status: int, code: str
) -> None:
    async with http.request(method, address + path) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["status"], problem["code"]) == (status, status, code)
        assert problem["instance"] == path.partition("?")[0]
        assert problem["type"] == f"urn:headrace:problem:{code}"
        assert problem["title"]
        assert problem["detail"]
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
        text = json.dumps(problem)
        assert ("retry-after" in answer.headers) == (status == 503 or code == "taken")
        assert not any(word in text for word in ("secret", "10.0.0.1", "Error", "Traceback"))
    if code == "taken":
        assert answer.headers["retry-after"] == "7"
    if status == 405:
        assert answer.headers["allow"] == "GET"


async def test_bodies_are_read_by_the_strict_reader(http: aiohttp.ClientSession, address: str) -> None:
    url = f"{address}/api/v1/things/7"
    async with http.post(url, json={"things": [{"name": "a"}]}) as answer:
        assert await answer.json() == {"id": "7", "names": ["a"]}
    async with http.post(url, json={"things": [{"name": "a"}, {"name": 1}]}) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert problem["errors"] == [{"path": "/things/1/name", "message": "Expected `str`, got `int`"}]
    for body in (b"x" * 1001, b'{"things": [' + b" " * 1000):
        async with http.post(url, data=body, headers={"content-type": "application/json"}) as answer:
            assert answer.status == 413
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    async with http.post(url, data=b"\x1f\x8b", headers=packed) as answer:
        assert answer.status == 415


async def test_half_an_answer_breaks_the_connection(http: aiohttp.ClientSession, address: str) -> None:
    async with http.get(f"{address}/api/v1/half") as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_lists_have_one_shape(http: aiohttp.ClientSession, address: str) -> None:
    async with http.get(f"{address}/api/v1/things?limit=2") as answer:
        assert await answer.json() == {
            "object": "list",
            "data": [{"id": "thing_0"}, {"id": "thing_1"}],
            "first_id": "thing_0",
            "last_id": "thing_1",
            "has_more": True,
        }


async def test_scopes_decide(http: aiohttp.ClientSession, address: str) -> None:
    async def mine(principal: Principal, key: bytes = KEY) -> tuple[int, str]:
        async with http.get(f"{address}/api/v1/mine", headers={HEADER: sign(principal, key)}) as answer:
            return answer.status, (await answer.json(content_type=None)).get("code", "")

    reader = Principal(tenant_id="org_1", subject="key_1", kind="api_key", scopes=frozenset({"usage:read"}))
    assert await mine(reader) == (200, "")
    assert await mine(Principal(tenant_id="org_1", subject="key_1", kind="api_key")) == (403, "missing_scope")
    assert await mine(reader, b"forged") == (401, "unauthenticated")
    assert await mine(system("relay")) == (200, "")
    for principal, status in ((reader, 404), (system("gateway"), 200)):
        async with http.get(f"{address}/api/v1/inner", headers={HEADER: sign(principal, KEY)}) as answer:
            assert answer.status == status


async def test_it_describes_itself(http: aiohttp.ClientSession, address: str) -> None:
    async with http.get(address + "/openapi.json") as answer:
        text = await answer.text()
    document = json.loads(text)
    assert document["paths"]["/api/v1/things/{thing_id}"]["post"]["requestBody"]["content"]
    assert {"Thing", "Things", "Problem"} <= document["components"]["schemas"].keys()
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert reference in document["components"]["schemas"]
    assert "/healthz" not in document["paths"]
    async with http.get(address + "/docs") as answer:
        page = await answer.text()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "/api/v1/things/{thing_id}" in page
    assert not re.search(r"<script|https?://", page)


async def test_metrics_are_labelled_by_template(http: aiohttp.ClientSession, address: str) -> None:
    for number in range(3):
        async with http.post(f"{address}/api/v1/things/{number}", json={"things": []}):
            pass
    async with http.get(address + "/metrics") as answer:
        text = await answer.text()
    counted = re.search(
        r'_count\{code="200",route="/api/v1/things/\{thing_id\}",service="sample"\} (\d+)', text
    )
    assert counted
    assert int(counted[1]) >= 3
    assert 'le="2.0"' in text


async def test_a_trace_goes_through_into_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = "0af7651916cd43dd8448eb211c80319c"
    with running(sample(free_port(), HEADRACE_LOG_LEVEL="debug"), log) as component:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "mine"}
        async with (
            aiohttp.ClientSession() as http,
            http.get(component.address + "/api/v1/things", headers=headers) as answer,
        ):
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["traceparent"].split("-")[1] == trace
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if line["message"] == "request" and line["data"]["id"] == "mine"]
    assert (line["service"], line["level"], line["traceId"]) == ("sample", "debug", trace)
    assert line["data"]["route"] == "/api/v1/things"


async def test_term_drains(tmp_path: Path) -> None:
    """The request at hand is finished, new connections are refused, the exit is clean."""
    component = sample(free_port())
    process = start(component, tmp_path / "log")
    async with aiohttp.ClientSession() as http:

        async def slow() -> int:
            async with http.get(component.address + "/api/v1/slow?seconds=8") as answer:
                return answer.status

        async def refused() -> bool:
            try:
                async with aiohttp.ClientSession() as other, other.get(component.address + "/readyz"):
                    return False
            except aiohttp.ClientConnectorError:
                return True

        call = asyncio.create_task(slow())
        await asyncio.sleep(2)
        process.send_signal(signal.SIGTERM)
        while not await refused():
            assert not call.done(), "it still took connections when the request at hand was finished"
            await asyncio.sleep(0.05)
        assert await call == 200
    assert await asyncio.to_thread(process.wait, 10) == 0


def test_a_wrong_setting_ends_the_start_in_one_line() -> None:
    component = sample(free_port(), HEADRACE_PORT_BASE="-1")
    ended = subprocess.run(
        component.argv, env=dict(component.env), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        "sample: setting HEADRACE_PORT_BASE: Input should be greater than or equal to 0"
    )


async def test_heads_are_bounded(address: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    try:
        for _ in range(MAX_HEAD_BYTES // 1000 + 2):
            writer.write(b"GET / HTTP/1.1\r\n" if _ == 0 else b"x-filler: " + b"y" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
    finally:
        writer.close()


async def test_requests_in_one_packet_are_answered_in_order(address: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    body = b'{"things": []}'
    post = b"POST /api/v1/things/%d HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    try:
        writer.write(b"".join(post % (number, len(body), body) for number in range(200)))
        for number in range(200):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            assert json.loads(await reader.readexactly(length))["id"] == str(number)
    finally:
        writer.close()
