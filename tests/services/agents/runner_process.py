"""One instance of the runner with the scripted loop: `python -m … NAME CAPACITY LEASE READY_FILE`. Drains on TERM."""

import asyncio
import signal
import sys
from pathlib import Path

from core import log
from core.database import Database
from core.settings import DatabaseSettings
from services.agents.runner import Runner
from tests.services.agents.scripted import execute


async def main() -> None:
    name, capacity, lease, ready = sys.argv[1:]
    log.configure(name, "info")
    database = Database(DatabaseSettings(), role="system")
    runner = Runner(
        database,
        execute,
        instance=name,
        capacity=int(capacity),
        lease_seconds=float(lease),
        renew_seconds=float(lease) / 3,
        poll_seconds=0.2,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.drain)
    Path(ready).touch()  # noqa: ASYNC240
    await runner.run()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
