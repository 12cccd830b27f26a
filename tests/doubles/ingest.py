"""The routes that an import calls, on a real socket."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass
class IngestDouble:
    """Takes events in, but for those of a quantity in `refused`.

    Args:
        breaks_at: the batch that is answered 500, and all that come later; they count from 1.
    """

    refused: frozenset[str] = frozenset()
    breaks_at: int | None = None
    batches: int = 0
    imports: int = 0
    ids: list[str] = field(default_factory=list)
    """Of all events that were answered with verdicts, in the order they came."""
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """URL of the running server."""
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = double._answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

    def _answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if path == "/api/v1/usage/imports":
                self.imports += 1
                return 201, {"id": f"imp_{self.imports}"}
            self.batches += 1
            if self.breaks_at is not None and self.batches >= self.breaks_at:
                return 500, {"code": "internal", "title": "Broken"}
            self.ids += [event["id"] for event in body]
        verdicts = [self._verdict(index, event) for index, event in enumerate(body)]
        refused = sum(verdict["status"] == "refused" for verdict in verdicts)
        return 200, {"accepted": len(body) - refused, "refused": refused, "verdicts": verdicts}

    def _verdict(self, index: int, event: Any) -> dict[str, Any]:
        verdict = {"index": index, "id": event["id"], "status": "accepted"}
        if event["data"]["quantity"] in self.refused:
            verdict |= {"status": "refused", "code": "schema", "message": "not this one"}
        return verdict
