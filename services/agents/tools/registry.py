"""The tools of a process, by name."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from core.settings import SecuritySettings, ServiceSettings
from services.agents.tools.calculator import CALCULATOR
from services.agents.tools.knowledge import knowledge_search
from services.agents.tools.memory import MemoryClient
from services.agents.tools.model import Tool
from services.common.auth import internal_key


class Tools:
    """Args: memory: what quotes are checked with; without it nothing is cited."""

    def __init__(self, tools: Iterable[Tool], memory: MemoryClient | None = None) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self.memory = memory

    def names(self) -> list[str]:
        """What an agent may list among its tools."""
        return sorted(self._tools)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def of(self, names: Iterable[str]) -> dict[str, Tool]:
        """Those of `names` that exist: an agent keeps working when a tool is taken away."""
        return {name: self._tools[name] for name in names if name in self._tools}


@asynccontextmanager
async def open_tools(
    services: ServiceSettings, security: SecuritySettings, more: Iterable[Tool] = ()
) -> AsyncIterator[Tools]:
    """The built-in tools and `more`, with a channel to memory that connects when it is first used."""
    memory = MemoryClient(services.memory_grpc, internal_key(security))
    try:
        yield Tools([CALCULATOR, knowledge_search(memory), *more], memory)
    finally:
        await memory.close()
