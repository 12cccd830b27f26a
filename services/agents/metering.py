"""Usage records of a run: one a token class and call, with ids that the same work gives again (law 3)."""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from core.clock import now
from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.tokens import Piece, Reply, pieces
from services.agents.model import RunContext

SOURCE: Final = "agents"
TOPIC: Final = "usage.records"


class Tokens(msgspec.Struct, frozen=True):
    """What a provider reported for one call, or, where it reports nothing, what is `guessed`."""

    input: int = 0
    """All of the input, also what was cached."""
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    """Part of the output."""
    cache_written: int = 0
    """Part of the input."""
    input_audio: int = 0
    cached_audio: int = 0
    """Part of what was cached, and of `input_audio`."""
    output_audio: int = 0

    @property
    def reported(self) -> bool:
        return bool(self.input or self.output)

    @property
    def fresh(self) -> int:
        """Input that was not cached."""
        return max(0, self.input - self.cached)

    def pieces(self, *, embedding: bool = False) -> list[Piece]:
        """What is metered: each token in one class."""
        reply = Reply(
            input=self.input,
            cached=self.cached,
            cache_written=self.cache_written,
            output=self.output,
            input_audio=self.input_audio,
            cached_audio=self.cached_audio,
            output_audio=self.output_audio,
        )
        return pieces(reply, embedding=embedding)


def guessed(sent: int, came: int) -> Tokens:
    """Of a call whose provider reported nothing, from bytes of text (UTF-8): four make a token. Otherwise such a
    provider's models would cost nothing, and no limit would hold."""
    return Tokens(input=math.ceil(sent / 4), output=math.ceil(came / 4))


def model_call(
    run: RunContext, turn: int, provider: str, model: str, tokens: Tokens, *, cut: str = ""
) -> list[NewRecord]:
    """Records of one call of a model.

    Args:
        cut: names an attempt that broke off, where the provider had reported tokens by then. The attempt
            that succeeds has none, so its ids are those of the turn.
    """
    named = {"provider": provider, "model": model}
    return [
        _record(
            run,
            derived_id(run.run_id, str(turn), cut, *piece.name),
            piece.meter,
            piece.quantity,
            {**named, **piece.dimensions},
        )
        for piece in tokens.pieces()
    ]


def tool_call(run: RunContext, turn: int, call: str, tool: str, outcome: str) -> list[NewRecord]:
    """The record of one call of a tool."""
    dimensions = {"tool": tool, "outcome": outcome}
    return [_record(run, derived_id(run.run_id, str(turn), call, "tool.calls"), "tool.calls", 1, dimensions)]


def ids_of(records: list[NewRecord]) -> list[str]:
    """Ids of the usage events in these records."""
    return [msgspec.json.decode(record.value, type=_Id).id for record in records]


class _Id(msgspec.Struct):
    id: str


def _record(
    run: RunContext, event_id: str, meter: str, quantity: int, dimensions: Mapping[str, str]
) -> NewRecord:
    event = UsageEvent(
        id=event_id,
        source=SOURCE,
        time=now(),
        tenant=run.tenant_id,
        subject=run.user,
        data=UsageData(meter, str(quantity), dict(dimensions)),
        type=TYPE,
        specversion="1.0",
    )
    return NewRecord(TOPIC, event.key, event.encode())
