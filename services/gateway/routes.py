"""What the gateway passes on, and to whom. To publish a path of a service, add a row here.

A path belongs to the row with the longest prefix that ends at a segment. What no row names is a 404,
so internal routes of the services cannot be reached from outside.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

Service = Literal["users", "billing", "agents", "memory", "ws", "relay"]

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table."""

    prefix: str
    service: Service
    methods: tuple[str, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    public: bool = False
    """True where no credential is asked for (and none is passed on)."""
    metered: bool = True
    """Counted as `api.requests` of the caller's organisation. Metering itself is not metered."""
    max_body: int = 256 * KIB
    timeout: float = 30.0
    """Seconds the service may be silent: before its answer, and between two pieces of it."""
    per_address: int = 0
    """Requests a minute from one client address; 0 for no such limit."""
    tokens: tuple[bytes, ...] = ()
    """Paths whose POST calls a model, named one by one: agents settles what is counted for these, and for no other.
    They share the tokens a minute of the caller's organisation."""
    runs: bytes = b""
    """How paths below it end whose POST starts a run: one token must be left for it."""

    def uses_tokens(self, method: str, raw_path: bytes) -> bool:
        """Whether the request may make a model answer."""
        if method != "POST":
            return False
        path = unquote_to_bytes(raw_path)  # as the service reads it
        if self.tokens:
            return path in self.tokens
        return bool(self.runs) and path.endswith(self.runs)


ROUTES: Final[tuple[Route, ...]] = (
    Route("/api/v1/auth", "users", ("POST",), public=True, metered=False, max_body=16 * KIB, per_address=60),
    # Below the public prefix, for people who are logged in.
    Route("/api/v1/auth/logout-all", "users", ("POST",), max_body=16 * KIB),
    Route("/api/v1/auth/password", "users", ("POST",), max_body=16 * KIB),
    Route("/api/v1/auth/mfa", "users", max_body=16 * KIB),
    # A web server refreshes for all its people from one address.
    Route(
        "/api/v1/auth/refresh",
        "users",
        ("POST",),
        public=True,
        metered=False,
        max_body=16 * KIB,
        per_address=600,
    ),
    Route("/api/v1/sessions", "users"),
    Route("/api/v1/roles", "users", ("GET",)),
    Route("/.well-known/jwks.json", "users", ("GET",), public=True, metered=False, per_address=600),
    Route("/api/v1/me", "users"),
    Route("/api/v1/organizations", "users"),
    Route("/api/v1/usage", "billing", metered=False, max_body=4 * MIB),
    Route("/api/v1/meters", "billing", ("GET",), metered=False),
    Route("/api/v1/prices", "billing", ("GET",), metered=False),
    Route("/api/v1/billing", "billing", metered=False),
    # A model may think for minutes before it says a word; a stream of ours is never silent for long.
    Route(
        "/v1",
        "agents",
        max_body=32 * MIB,
        timeout=600.0,
        tokens=(b"/v1/chat/completions", b"/v1/embeddings", b"/v1/responses"),
    ),
    Route("/v1/models", "agents", ("GET",)),
    Route("/api/v1/agents", "agents", max_body=MIB, timeout=60.0, runs=b"/runs"),
    Route("/api/v1/conversations", "agents", max_body=64 * MIB, timeout=60.0, runs=b"/messages"),
    Route("/api/v1/runs", "agents", max_body=MIB, timeout=60.0),
    Route("/api/v1/providers", "agents"),
    Route("/api/v1/knowledge-bases", "memory", max_body=MIB),
    Route("/api/v1/documents", "memory", max_body=MIB, timeout=60.0),
    Route("/api/v1/search", "memory", max_body=MIB),
    Route("/api/v1/memories", "memory", max_body=MIB),
    # The token in the path is the credential: memory signed it for this one upload.
    Route(
        "/api/v1/uploads",
        "memory",
        ("PUT", "POST"),
        public=True,
        metered=False,
        max_body=GIB,
        timeout=60.0,
        per_address=600,
    ),
    Route("/api/v1/ws/tickets", "ws", ("POST",), max_body=16 * KIB),
    Route("/api/v1/dead-letters", "relay", ("GET", "POST"), max_body=16 * KIB, timeout=60.0),
)

# Routes of the services end before a last line feed, too.
_AMBIGUOUS: Final = re.compile(rb"%(?:2[eEfF]|5[cC]|0[0aA])|\\|/\.\.?(?:/|$)")


class AmbiguousPathError(ValueError):
    """The path could mean another one to the next server: encoded slashes, dots, NUL, line feeds, `..`."""


class RouteTable:
    """Finds the row of a path."""

    def __init__(self, routes: Sequence[Route] = ROUTES) -> None:
        self._rows = sorted(
            ((route.prefix.encode(), route.prefix.encode() + b"/", route) for route in routes),
            key=lambda row: -len(row[0]),
        )

    def find(self, raw_path: bytes) -> Route | None:
        """The row for a path as it came over the wire, without its query.

        Raises:
            AmbiguousPathError: refused instead of guessed.
        """
        if _AMBIGUOUS.search(raw_path):
            raise AmbiguousPathError
        for exact, below, route in self._rows:
            if raw_path == exact or raw_path.startswith(below):
                return route
        return None
