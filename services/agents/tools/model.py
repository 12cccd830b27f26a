"""What a tool is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from services.agents.model import RunContext

SideEffect = Literal["pure", "idempotent", "unsafe"]
"""pure: changes nothing. idempotent: a second call with the same `Call.key` changes nothing more. unsafe:
every call may change something, so one whose end nobody saw is never repeated by itself."""


class ToolError(Exception):
    """The call failed; the message is for the model, which may try something else."""


class Passage(msgspec.Struct, frozen=True, gc=False):
    """Source text that an answer may quote by its marker."""

    marker: int
    """1, 2, … within the run."""
    document: str
    version: int
    start: int
    """Code points from the start of the document's text."""
    end: int
    text: str
    name: str = ""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    run: RunContext
    key: str
    """Names this call for ever: the same on a retry and after a takeover. Idempotent tools pass it on."""
    first_marker: int = 1
    """Passages are numbered from here."""


class Output(msgspec.Struct, frozen=True):
    """What a call gave."""

    content: str
    """For the model; longer than the tool's `max_characters` it is cut."""
    passages: tuple[Passage, ...] = ()
    degraded: str = ""
    """Why the tool could do only part of its work: becomes a visible event."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Args: arguments: the msgspec Struct that the model's arguments must fit; its docstring and `Meta`
    become the schema that the model reads."""

    name: str
    description: str
    arguments: type[msgspec.Struct]
    side_effect: SideEffect
    call: Callable[[Call, Any], Awaitable[Output]]
    """Raises: ToolError; anything else is our fault and told to the model without its reason."""
    seconds: float = 10.0
    max_characters: int = 60_000
    origin: str = "builtin"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments, without references."""
        (shape,), parts = msgspec.json.schema_components([self.arguments], ref_template="#/$defs/{name}")
        found = dict(parts.pop(shape["$ref"].rpartition("/")[2])) if "$ref" in shape else dict(shape)
        if parts:
            found["$defs"] = parts
        return found
