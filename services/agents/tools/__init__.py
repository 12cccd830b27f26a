"""Tools that an agent may call: what they are, and what repeating them would do.

async with open_tools(ServiceSettings(), SecuritySettings()) as tools:
    outcome = await execute(run, journal, providers, tools)
"""

from services.agents.tools.model import Call, Output, Passage, SideEffect, Tool, ToolError
from services.agents.tools.registry import Tools, open_tools

__all__ = ["Call", "Output", "Passage", "SideEffect", "Tool", "ToolError", "Tools", "open_tools"]
