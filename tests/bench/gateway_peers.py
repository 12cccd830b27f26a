"""The processes around the gateway in its bench: a service that answers at once, and what others are.

python -m tests.bench.gateway_peers service PORT
python -m tests.bench.gateway_peers bare|fastapi PORT SERVICE_PORT
"""

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import aiohttp
import httpx2
import msgspec
import uvicorn
import uvloop
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from yarl import URL

from services.common.auth import Introspection
from services.common.principal import Principal

BODY: Final = b'{"id":"usr_1","object":"user","organization":"org_1","padding":"' + b"x" * 198 + b'"}'
_CALLER: Final = Principal(
    tenant_id="org_bench", subject="key_bench", kind="api_key", plan="bench", requests_per_minute=1_000_000_000,
    key_id="key_bench",
)  # fmt: skip

TOKENS: Final = 40
TOKEN_SECONDS: Final = 0.03


def _answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class Service(asyncio.Protocol):
    """Answers each GET with `BODY`, below `/v1` with a token each 30 ms, and each POST as users answers
    an introspection."""

    _plain = _answer(BODY)
    _active = _answer(msgspec.json.encode(Introspection(True, _CALLER)))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for head in heads:
            if b"POST /internal" in head:
                self._rest = b""
                self._transport.write(self._active)
            elif b" /v1/" in head:
                self._streaming = asyncio.create_task(self._stream())
            else:
                self._transport.write(self._plain)

    async def _stream(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head)
        due = asyncio.get_running_loop().time()
        for number in range(TOKENS):
            data = b'data: {"token":%d,"sent":%.6f}\n\n' % (number, time.monotonic())
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            due += TOKEN_SECONDS
            await asyncio.sleep(due - asyncio.get_running_loop().time())
        self._transport.write(b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", port)
    await server.serve_forever()


class Bare:
    """What nobody can leave out: head and body through aiohttp's client, piece by piece."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._http: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        await receive()
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name != b"host"]
        url = URL(self._base + scope["raw_path"].decode(), encoded=True)
        async with self._http.request(scope["method"], url, headers=headers, allow_redirects=False) as answer:
            back = [(name.lower(), value) for name, value in answer.raw_headers]
            await send({"type": "http.response.start", "status": answer.status, "headers": back})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def fastapi(base: str) -> FastAPI:
    """The proxy that is written first: a dependency for the key, a route for all paths, a client with a
    pool. It limits and meters nothing."""
    keys = {hashlib.sha256(b"sk_live_bench").digest(): "org_bench"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx2.AsyncClient(base_url=base, limits=limits, timeout=30) as http:
            app.state.http = http
            yield

    async def tenant(request: Request) -> str:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        found = keys.get(hashlib.sha256(key.encode()).digest())
        if found is None:
            raise HTTPException(401)
        return found

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def proxy(request: Request, path: str, tenant: Annotated[str, Depends(tenant)]) -> Response:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in {"host", "authorization", "content-length"}
        }
        answer = await request.app.state.http.request(
            request.method, f"/{path}", headers={**headers, "x-tenant": tenant}, content=await request.body()
        )
        return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])

    return app


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "service":
        uvloop.run(serve(port))
    else:
        base = f"http://127.0.0.1:{sys.argv[3]}"
        app: Any = fastapi(base) if kind == "fastapi" else Bare(base)
        uvicorn.run(
            app,
            port=port,
            loop="uvloop",
            http="httptools",
            lifespan="auto",
            log_level="error",
            access_log=False,
        )


if __name__ == "__main__":
    main()
