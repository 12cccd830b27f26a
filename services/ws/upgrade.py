"""What is asked of a request before it becomes a WebSocket: path, origin, subprotocol, a credential."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from picows import WSUpgradeRequest

from services.ws.frames import SUBPROTOCOL

_PATH: Final = "/ws/v1"


class Origins:
    """Origins of pages that may connect. Who sends none is no browser, and needs a credential of its own."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._known = frozenset(origin_of(url) for url in urls if url.strip())

    def admits(self, origin: str | None) -> bool:
        return origin is None or origin.lower() in self._known


def origin_of(url: str) -> str:
    """`scheme://host[:port]` as a browser sends it."""
    parts = urlsplit(url.strip().lower())
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in {None, usual} else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


@dataclass(frozen=True, slots=True)
class Refused:
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Wish:
    """What the client showed: one of both."""

    ticket: str
    credential: str
    subprotocol: bool


def examine(request: WSUpgradeRequest, origins: Origins) -> Wish | Refused:
    """The client's wish, or the answer that refuses it. Firefox's `Connection` header is put right."""
    path, _, query = request.path.decode("latin-1").partition("?")
    headers = request.headers
    if path != _PATH:
        return Refused(404, b"connect to /ws/v1\n")
    sent = headers.getall("origin", [])
    if len(sent) > 1 or not origins.admits(sent[0] if sent else None):
        return Refused(403, b"this origin may not connect; see HEADRACE_WS_ORIGINS\n")
    offered = [
        name.strip() for line in headers.getall("sec-websocket-protocol", []) for name in line.split(",")
    ]
    if offered and SUBPROTOCOL not in offered:
        return Refused(400, b"the subprotocol is agent.v1\n")
    tickets = parse_qs(query).get("ticket", [])
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    credential = credential.strip() if scheme.lower() == "bearer" else ""
    if len(tickets) > 1 or bool(tickets) == bool(credential):
        return Refused(401, b"give ?ticket= (POST /api/v1/ws/tickets) or a bearer header\n")
    if credential and sent:
        return Refused(403, b"pages connect with a ticket\n")
    tokens = [token.strip().lower() for token in headers.get("connection", "").split(",")]
    if "upgrade" in tokens:
        headers["connection"] = "upgrade"
    return Wish(tickets[0] if tickets else "", credential, bool(offered))
