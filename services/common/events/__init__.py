"""The events of runs on every process: live from `agent.events`, from memory, and from the log.

events = AgentEvents(log, ring_bytes=64 << 20)
... = asyncio.create_task(events.run())
async with events.follow("run:run_…", after=(1, 7), span=where_the_row_says) as stream:
    if not stream.recovered:
        ...  # stream.reason says why: load the state from the database first
    async for head, raw in stream:  # raises StreamLostError instead of leaving something out
        ...
"""

from services.common.events.agent_events import AgentEvents, Attached
from services.common.events.positions import Span, Vector, channel_of
from services.common.events.ring import Entry, Listener
from services.common.events.stream import EventStream, StreamLostError

__all__ = [
    "AgentEvents",
    "Attached",
    "Entry",
    "EventStream",
    "Listener",
    "Span",
    "StreamLostError",
    "Vector",
    "channel_of",
]
