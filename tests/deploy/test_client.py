"""The owner's login on the command line outlives an access token."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploy.client import SPARE_SECONDS, Operator


class Gateway(ThreadingHTTPServer):
    """Answers logins with tokens of their own, and everything else with who asked."""

    def __init__(self, lifetime: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lifetime, self.logins = lifetime, 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.logins += 1
        self._say({"access_token": f"token-{self.server.logins}", "expires_in": self.server.lifetime})

    def do_GET(self) -> None:
        self._say({"bearer": self.headers["authorization"]})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the test's output."""

    def _say(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def gateway(lifetime: float) -> Iterator[Gateway]:
    with Gateway(lifetime) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def bearers(server: Gateway, folder: Path, calls: int) -> list[str]:
    owner = Operator(f"http://127.0.0.1:{server.server_port}", "owner@example.org", "secret", folder / "keys")
    try:
        return [owner.client().get("/who")["bearer"] for _ in range(calls)]
    finally:
        owner.client().close()


def test_one_login_serves_all_calls_while_its_token_is_good(tmp_path: Path) -> None:
    with gateway(SPARE_SECONDS + 600) as server:
        assert bearers(server, tmp_path, 3) == ["Bearer token-1"] * 3
        assert server.logins == 1


def test_a_token_that_is_about_to_end_is_not_used_again(tmp_path: Path) -> None:
    with gateway(SPARE_SECONDS) as server:
        assert bearers(server, tmp_path, 3) == ["Bearer token-1", "Bearer token-2", "Bearer token-3"]
