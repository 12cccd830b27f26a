"""Ending tasks so that they have ended."""

import asyncio
from typing import Any, Final

_ASK_AGAIN: Final = 0.5
"""Seconds until a task that went on after its cancellation is cancelled again."""


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until each has ended; what they raise is theirs to have logged.

    One cancellation is not enough: on Python 3.11 `asyncio.wait_for` returns the result and drops the
    cancellation when both come in one turn of the loop (cpython issue 86296), and clients of servers
    use it inside. A loop that went on so never ended, and who waited for it hung.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_ASK_AGAIN)
