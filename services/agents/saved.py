"""What the loop leaves in checkpoints, and a run's state as it is put together from them.

A model turn is saved with its request and its response, a tool call with its result. A run goes on
from the last of them: a response that still wants tools runs those without a result again, with the
same ids; what has a result is not called again.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final, Literal

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)

from core.contracts.run_events import Totals
from services.agents.metering import Tokens
from services.agents.model import Checkpoint, RunContext, StoredMessage
from services.agents.tools import Passage


class SavedTurn(msgspec.Struct, frozen=True, tag="turn"):
    """A finished model turn."""

    turn: int
    model: str
    """`provider/model` that answered."""
    message: str
    """Id of its message; empty where it only called tools."""
    calls: dict[str, str]
    """The provider's id of each tool call to ours, which never changes again."""
    tokens: Tokens
    cost: str
    messages: msgspec.Raw
    """Request and response, pydantic-ai's JSON."""
    incomplete: bool = False
    """The provider ended it at a limit of tokens."""


class SavedCall(msgspec.Struct, frozen=True, tag="call"):
    """A tool call that has begun (only unsafe ones are saved so) or has a result."""

    turn: int
    call: str
    """Our id."""
    state: Literal["begun", "done"]
    round: int = 0
    """For `begun`: how many questions about it had been answered."""
    content: str = ""
    passages: tuple[Passage, ...] = ()


class SavedCut(msgspec.Struct, frozen=True, tag="cut"):
    """A request whose answer broke off after the provider had reported tokens: they are owed and count."""

    turn: int
    model: str
    tokens: Tokens
    cost: str


Saved = SavedTurn | SavedCall | SavedCut
_DECODER: Final[msgspec.json.Decoder[Saved]] = msgspec.json.Decoder(Saved)


def encode(saved: Saved) -> bytes:
    return msgspec.json.encode(saved)


def dump(messages: Sequence[ModelMessage]) -> msgspec.Raw:
    return msgspec.Raw(ModelMessagesTypeAdapter.dump_json(list(messages)))


class State:
    """Where a run stands."""

    def __init__(self, run: RunContext) -> None:
        self.turns: list[SavedTurn] = []
        self.cuts: list[SavedCut] = []
        self.calls: dict[str, SavedCall] = {}
        # An answer without a word ended at its limit while the model thought: providers refuse empty messages.
        said = [one for one in run.history if one.text or one.role != "assistant"]
        self.messages: list[ModelMessage] = [_message(one) for one in said]
        self._input = _message(run.input)
        for checkpoint in run.checkpoints:
            self.add(restored(checkpoint))

    def add(self, saved: Saved) -> None:
        if isinstance(saved, SavedTurn):
            self.turns.append(saved)
            self.messages += ModelMessagesTypeAdapter.validate_json(bytes(saved.messages))
        elif isinstance(saved, SavedCall):
            self.calls[saved.call] = saved
        else:
            self.cuts.append(saved)

    @property
    def conversation(self) -> list[ModelMessage]:
        """What the next step starts from: everything up to the last response, or to the question."""
        return list(self.messages) if self.turns else [*self.messages, self._input]

    @property
    def response(self) -> ModelResponse | None:
        """The last turn's; None before the first."""
        last = self.messages[-1] if self.turns else None
        return last if isinstance(last, ModelResponse) else None

    @property
    def passages(self) -> dict[int, Passage]:
        """By marker."""
        return {passage.marker: passage for call in self.calls.values() for passage in call.passages}

    @property
    def requests(self) -> list[SavedTurn | SavedCut]:
        """Those to a model that a provider counted."""
        return [*self.turns, *self.cuts]

    @property
    def cost(self) -> Decimal:
        return sum((Decimal(one.cost) for one in self.requests), Decimal(0))

    @property
    def totals(self) -> Totals:
        """Of the whole run."""
        return totals([*self.requests, *self.calls.values()])


def totals(saved: Iterable[Saved]) -> Totals:
    """What a run has used whose checkpoints these are."""
    steps = list(saved)
    tokens = [step.tokens for step in steps if not isinstance(step, SavedCall)]
    return Totals(
        input_tokens=sum(one.input for one in tokens),
        output_tokens=sum(one.output for one in tokens),
        cached_tokens=sum(one.cached for one in tokens),
        reasoning_tokens=sum(one.reasoning for one in tokens),
        requests=len(tokens),
        tool_calls=sum(isinstance(step, SavedCall) and step.state == "done" for step in steps),
    )


def restored(checkpoint: Checkpoint) -> Saved:
    """Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _DECODER.decode(checkpoint.payload)


def _message(stored: StoredMessage) -> ModelMessage:
    if stored.role == "assistant":
        return ModelResponse(parts=[TextPart(stored.text)])
    if stored.role == "system":
        return ModelRequest(parts=[SystemPromptPart(stored.text)])
    return ModelRequest(parts=[UserPromptPart(stored.text)])
