"""The processes of the WebSocket bench: what others build, and clients that count frames cheaply.

python -m tests.bench.ws_peers fastapi PORT
python -m tests.bench.ws_peers clients PORT COUNT REQUEST_FILE FRAMES_EACH
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect

MARK = b'"ts":'


def rival() -> FastAPI:
    """FastAPI as its tutorial has it: a queue and a task for each connection, `send_text` for each event."""
    app = FastAPI()
    queues: set[asyncio.Queue[str]] = set()

    @app.websocket("/ws/v1")
    async def follow(socket: WebSocket) -> None:
        await socket.accept()
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)
        try:
            await socket.send_text('{"t":"hello"}')
            while True:
                await socket.send_text(await queue.get())
        except WebSocketDisconnect:
            pass
        finally:
            queues.discard(queue)

    @app.post("/publish")
    async def publish(request: Request) -> dict[str, int]:
        texts = (await request.body()).decode().split("\n")
        for text in texts:
            for queue in queues:
                queue.put_nowait(text)
            await asyncio.sleep(0)
        return {"published": len(texts)}

    return app


class Counter(asyncio.Protocol):
    """One connection: upgrades, sends its request after hello, counts event frames and times some."""

    def __init__(self, upgrade: bytes, request: bytes, bench: "Clients", timed: bool) -> None:
        self._upgrade, self._request, self._bench, self._timed = upgrade, request, bench, timed
        self._rest = b""
        self._open = False
        self.frames = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send(self._upgrade)

    def _send(self, data: bytes) -> None:
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, size = 0, len(data)
        if not self._open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            at, self._open = end + 4, True
        while size - at >= 4:
            length, head = data[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4]), 4
            if size - at < head + length:
                break
            if data[at] == 0x81:
                self._frame(data, at + head, at + head + length)
            elif data[at] == 0x89:
                # uvicorn closes a socket whose ping has no answer for 20 s.
                self._transport.write(_masked(data[at + head : at + head + length], opcode=0x8A))
            at += head + length
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._bench.lose(self._rest)

    def _frame(self, data: bytes, start: int, end: int) -> None:
        kind = data[start + 6 : start + 9]
        if kind == b"eve":
            self.frames += 1
            self._bench.counted(self)
            if self._timed:
                mark = data.find(MARK, start, end) + len(MARK)
                self._bench.latencies.append(10**18 + time.monotonic_ns() - int(data[mark : mark + 19]))
        elif kind == b"hel":
            if self._request:
                self._send(self._request)
            else:
                self._bench.ready()
        elif kind == b"res":
            self._bench.ready()
        elif kind == b"pin":
            self._transport.write(_masked(b'{"t":"pong"}'))


class Clients:
    """All connections; prints `ready`, and a summary for each line with a number of frames on stdin."""

    def __init__(self, count: int) -> None:
        self.count, self.latencies = count, list[int]()
        self._ready, self._done, self._wanted = 0, 0, 0
        self.all_ready, self.finished = asyncio.Event(), asyncio.Event()

    def ready(self) -> None:
        self._ready += 1
        if self._ready == self.count:
            self.all_ready.set()

    def expect(self, frames: int) -> None:
        self._wanted, self._done = self._wanted + frames, 0
        self.finished.clear()

    def lose(self, last: bytes) -> None:
        """A client that lost its connection never counts to the end: that ends the bench, which ends its clients
        before its servers. `sys.exit` in a callback would end nothing."""
        print(f"a server closed a connection; the last it sent: {last!r}", file=sys.stderr, flush=True)
        os._exit(1)

    def counted(self, client: Counter) -> None:
        if client.frames == self._wanted:
            self._done += 1
            if self._done == self.count:
                self.finished.set()


def _masked(payload: bytes, *, opcode: int = 0x81) -> bytes:
    """A client's frame; the mask of zeros leaves the payload as it is."""
    size = len(payload)
    head = bytes((opcode, 0x80 | size)) if size < 126 else bytes((opcode, 0xFE)) + size.to_bytes(2)
    return head + bytes(4) + payload


async def clients(port: int, count: int, folder: Path) -> None:
    """Connect all, then count what is announced on stdin."""
    bench, loop = Clients(count), asyncio.get_running_loop()
    plan = json.loads((folder / "plan.json").read_text())
    for index in range(count):
        ticket = plan["tickets"][index] if plan["tickets"] else ""
        upgrade = (
            f"GET /ws/v1{'?ticket=' + ticket if ticket else ''} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        ).encode()
        request = _masked(plan["request"].encode()) if plan["request"] else b""
        timed = index % 8 == 0
        await loop.create_connection(
            lambda u=upgrade, r=request, t=timed: Counter(u, r, bench, t),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
    await bench.all_ready.wait()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        bench.latencies.clear()
        bench.expect(int(line))
        print("expecting", flush=True)
        await bench.finished.wait()
        milliseconds = sorted(latency / 1e6 for latency in bench.latencies)
        print(json.dumps({
            "p50_ms": round(milliseconds[len(milliseconds) // 2], 2),
            "p99_ms": round(milliseconds[int(len(milliseconds) * 0.99)], 2),
        }), flush=True)  # fmt: skip


def main() -> None:
    role, port = sys.argv[1], int(sys.argv[2])
    if role == "fastapi":
        uvicorn.run(rival(), port=port, loop="uvloop", ws="websockets-sansio", log_level="warning",
                    ws_per_message_deflate=False)  # fmt: skip
    else:
        uvloop.run(clients(port, int(sys.argv[3]), Path(sys.argv[4])))


if __name__ == "__main__":
    main()
