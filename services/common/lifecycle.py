"""Where a service process is in its life, and what it must reach to be of use."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

Check = Callable[[], Awaitable[object]]
"""Returns when the dependency answers, raises when it does not."""

CHECK_SECONDS: Final = 1.0
"""Below the patience of whoever probes: an answer that says what is away must arrive."""
FRESH_SECONDS: Final = 1.0
"""How long an answer holds for others: at the gateway anybody may ask, and each reading asks six services."""


@dataclass(slots=True)
class Lifecycle:
    """One per process. After SIGTERM `draining` is true: not ready, but requests at hand are finished."""

    draining: bool = False
    checks: dict[str, Check] = field(default_factory=dict)
    """What the service is of no use without."""
    advisory: dict[str, Check] = field(default_factory=dict)
    """What it does part of its work without: ready, but `degraded`."""

    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _results: dict[str, str] = field(default_factory=dict)
    _fresh_until: float = float("-inf")

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """What all dependencies said at most `FRESH_SECONDS` ago; who come together wait for one reading."""
        async with self._reading:
            if time.monotonic() >= self._fresh_until:
                self._results = await self._read()
                self._fresh_until = time.monotonic() + FRESH_SECONDS
            results = self._results
        ready = not self.draining and all(results.get(name) == "ok" for name in self.checks)
        degraded = any(results.get(name) != "ok" for name in self.advisory)
        status = (
            "draining" if self.draining else "not_ready" if not ready else "degraded" if degraded else "ready"
        )
        return ready, {"status": status, "checks": results}

    async def _read(self) -> dict[str, str]:
        """Ask all dependencies at once, each for at most `CHECK_SECONDS`."""
        asked = {**self.checks, **self.advisory}
        return dict(zip(asked, await asyncio.gather(*map(_ask, asked.values())), strict=True))


async def _ask(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer in {CHECK_SECONDS:g} s"
    except Exception as error:
        # A probe reports whatever a driver raises; the class says enough without leaking addresses.
        return type(error).__name__
    return "ok"
