"""Stops waiting for a service whose host does not answer at all.

A refused connection costs nothing, so it never opens the breaker; a connect that runs into its time-out
holds a caller for seconds. After three of those in a row requests are refused at once, and every two
seconds one goes through to see whether the host is back.
"""

import time
from typing import Final

from prometheus_client import Gauge

from services.common.errors import unavailable

THRESHOLD: Final = 3
OPEN_SECONDS: Final = 2.0

OPEN: Final = Gauge(
    "gateway_breaker_open", "1 while requests to the service are refused unasked", ("service",)
)


class Breaker:
    """Of one service."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._failures = 0
        self._open_until = float("-inf")
        OPEN.labels(service).set(0)

    def check(self) -> None:
        """Raises: Problem 503 while open."""
        if self._failures < THRESHOLD:
            return
        now = time.monotonic()
        if now < self._open_until:
            raise unavailable(f"The {self._service} service", retry_after=int(OPEN_SECONDS))
        self._open_until = now + OPEN_SECONDS  # this one may try; the others wait for what it finds

    def failed(self) -> None:
        """A connect ran into its time-out."""
        self._failures += 1
        if self._failures >= THRESHOLD:
            self._open_until = time.monotonic() + OPEN_SECONDS
            OPEN.labels(self._service).set(1)

    def succeeded(self) -> None:
        """The host answered, whatever it said."""
        if self._failures:
            self._failures = 0
            OPEN.labels(self._service).set(0)
