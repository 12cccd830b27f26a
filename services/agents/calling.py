"""Tools as the model calls them: approvals, limits, events, usage and the checkpoint of each result."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from pydantic_ai import RunContext as ModelContext
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets.abstract import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from core.contracts.run_events import ToolStatus
from core.log import Logger
from services.agents import metering
from services.agents.approvals import WaitError, not_allowed, question, why
from services.agents.journal import FencedError, Journal
from services.agents.model import RunContext
from services.agents.saved import SavedCall, State, encode
from services.agents.tools import Call, Output, Tool, ToolError

_ANY_OBJECT: Final = SchemaValidator(core_schema.dict_schema())
_PATIENT: Final = 1000
"""Wrong arguments are told to the model as often as it likes: the run's own limits end that."""
_log = Logger("agents.tools")


class RunTools(AbstractToolset[object]):
    """The tools of one run.

    Calls of one turn run one after the other: markers of passages, events and checkpoints then have one
    order, on every attempt.
    """

    def __init__(self, run: RunContext, journal: Journal, state: State, tools: Mapping[str, Tool]) -> None:
        self._run, self._journal, self._state, self._tools = run, journal, state, tools
        self._reported: set[str] = set()
        self._answered = {(one.call, one.round): one for one in run.answered}

    @property
    def id(self) -> str | None:
        return "run"

    async def get_tools(self, ctx: ModelContext[object]) -> dict[str, ToolsetTool[object]]:
        return {
            name: ToolsetTool(
                toolset=self,
                tool_def=ToolDefinition(
                    name=name,
                    description=tool.description,
                    parameters_json_schema=tool.schema,
                    sequential=True,
                ),
                max_retries=_PATIENT,
                args_validator=_ANY_OBJECT,
            )
            for name, tool in self._tools.items()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: ModelContext[object], tool: ToolsetTool[object]
    ) -> str:
        """The result for the model: an old one where there is one, else that of a call.

        Raises:
            WaitError: a person must be asked first.
        """
        turn = self._state.turns[-1]
        call = turn.calls[str(ctx.tool_call_id)]
        saved = self._state.calls.get(call)
        if saved is not None and saved.state == "done":
            return saved.content
        return await self._call(call, self._tools[name], tool_args, turn.turn, begun=saved)

    def refused(self, part: ToolReturnPart) -> None:
        """pydantic-ai has answered a call itself: unknown tool, or arguments that are not JSON."""
        call = self._state.turns[-1].calls.get(part.tool_call_id, "")
        if call and call not in self._reported:
            self._reported.add(call)
            self._tell(call, part.tool_name, "error", part.model_response_str(), 0)

    async def _call(
        self, call: str, tool: Tool, given: dict[str, Any], turn: int, *, begun: SavedCall | None
    ) -> str:
        try:
            arguments = msgspec.convert(given, tool.arguments, strict=False)
        except msgspec.ValidationError as error:
            refusal = Output(f"The arguments do not fit: {error}. Correct them and call again.")
            return await self._done(call, tool.name, turn, "error", refusal, 0, billed=False)
        asked = begun.round if begun else 0
        if reason := why(self._run.spec, tool, interrupted=begun is not None):
            asked += 1
            answer = self._answered.get((call, asked))
            if answer is None:
                raise WaitError(question(call, asked, tool, given, reason))
            if answer.decision != "approve":
                return await self._done(
                    call, tool.name, turn, "error", not_allowed(answer, reason), 0, billed=False
                )
        if tool.side_effect == "unsafe":
            begun = SavedCall(turn=turn, call=call, state="begun", round=asked)
            await self._journal.checkpoint("tool", encode(begun))
            self._state.add(begun)
        elif tool.side_effect == "idempotent":
            # Proof that the run is still ours, before anything happens outside.
            await self._journal.flush()
        began = time.monotonic()
        status, output = await self._attempt(call, tool, arguments)
        if len(output.content) > tool.max_characters:
            shorter = output.content[: tool.max_characters] + "\n[cut: the result is longer]"
            output = msgspec.structs.replace(output, content=shorter)
        took = round((time.monotonic() - began) * 1000)
        return await self._done(call, tool.name, turn, status, output, took, billed=True)

    async def _attempt(self, call: str, tool: Tool, arguments: msgspec.Struct) -> tuple[ToolStatus, Output]:
        marker = max(self._state.passages, default=0) + 1
        try:
            async with asyncio.timeout(tool.seconds):
                return "ok", await tool.call(Call(self._run, call, marker), arguments)
        except TimeoutError:
            return "timeout", Output(f"The tool did not finish within {tool.seconds:g} s.")
        except ToolError as error:
            return "error", Output(f"The tool failed: {error}.")
        except FencedError:
            raise
        except Exception as error:
            # A tool is foreign code: what it raises ends its call, not the run.
            _log.error("a tool failed", tool=tool.name, run=self._run.run_id, exc=error)
            return "error", Output("The tool failed.")

    async def _done(
        self, call: str, name: str, turn: int, status: ToolStatus, output: Output, took: int, *, billed: bool
    ) -> str:
        if output.degraded:
            self._journal.emit("retrieval.degraded", {"reason": output.degraded})
        self._tell(call, name, status, output.content, took)
        saved = SavedCall(
            turn=turn, call=call, state="done", content=output.content, passages=output.passages
        )
        records = metering.tool_call(self._run, turn, call, name, status) if billed else []
        await self._journal.checkpoint("tool", encode(saved), records)
        self._state.add(saved)
        return output.content

    def _tell(self, call: str, name: str, status: ToolStatus, content: str, took: int) -> None:
        self._journal.emit(
            "tool_result",
            {
                "call": call,
                "name": name,
                "status": status,
                "content": content,
                "latency_ms": took,
                "replayed": False,
            },
        )
