"""One instance of the runner with the real loop: `python -m … NAME READY_FILE PROVIDER_URL EFFECTS_URL`."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import httpx2
import msgspec

from core import log
from core.database import Database
from core.security.secret import Secret
from core.settings import DatabaseSettings, ProviderSettings, SecuritySettings, ServiceSettings
from services.agents.loop import execute
from services.agents.providers import Provider, open_providers
from services.agents.runner import Runner
from services.agents.tools import Call, Output, SideEffect, Tool, Tools

LEASE = 4.0


class Numbered(msgspec.Struct):
    n: int


def effect(name: str, side_effect: SideEffect, url: str) -> Tool:
    """A tool whose effect happens in another process, under the key of its call."""

    async def call(asked: Call, _: Numbered) -> Output:
        async with httpx2.AsyncClient(timeout=30) as http:
            return Output((await http.post(url, json={"tool": name, "key": asked.key})).text)

    return Tool(name, "Does it.", Numbered, side_effect, call, seconds=30)


async def main() -> None:
    name, ready, provider, effects = sys.argv[1:]
    log.configure(name, os.environ.get("HEADRACE_LOG_LEVEL", "info"))
    database = Database(DatabaseSettings(), role="system")
    tools = Tools([effect("effect", "idempotent", effects), effect("danger", "unsafe", effects)])
    async with open_providers(ProviderSettings(), ServiceSettings(), SecuritySettings(), None) as providers:
        providers.platform["double"] = Provider("double", "openai", f"{provider}/v1", Secret("x"), ())
        runner = Runner(
            database,
            partial(execute, providers=providers, tools=tools),
            instance=name,
            lease_seconds=LEASE,
            renew_seconds=LEASE / 3,
            poll_seconds=0.2,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.drain)
        Path(ready).touch()  # noqa: ASYNC240
        await runner.run()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
