"""Where a service process is in its life, and what it must reach to be of use."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

Check = Callable[[], Awaitable[object]]
"""Returns when the dependency answers, raises when it does not."""

CHECK_SECONDS: Final = 1.0
"""Below the patience of whoever probes: an answer that says what is away must arrive."""


@dataclass(slots=True)
class Lifecycle:
    """One per process. After SIGTERM `draining` is true: not ready, but requests at hand are finished."""

    draining: bool = False
    checks: dict[str, Check] = field(default_factory=dict)
    """What the service is of no use without."""
    advisory: dict[str, Check] = field(default_factory=dict)
    """What it does part of its work without: ready, but `degraded`."""

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ask all dependencies at once, each for at most `CHECK_SECONDS`."""
        asked = {**self.checks, **self.advisory}
        results = dict(zip(asked, await asyncio.gather(*map(_ask, asked.values())), strict=True))
        ready = not self.draining and all(results[name] == "ok" for name in self.checks)
        degraded = any(results[name] != "ok" for name in self.advisory)
        status = (
            "draining" if self.draining else "not_ready" if not ready else "degraded" if degraded else "ready"
        )
        return ready, {"status": status, "checks": results}


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
